"""What holds for every test: layouts do not depend on how fast this machine is just now."""

import os

os.environ["TERAEDGE_CALIBRATION"] = "typical"
