"""`python -m roomtone.capture.source` is the capture process."""

from roomtone.capture.source.main import main

main()
