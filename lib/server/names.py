"""What new images, labels' tags and uploaded files may be called."""

import re

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
