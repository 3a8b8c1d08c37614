"""The command line. Exit codes: 0 done, 1 failed at run time, 2 usage, 78 configuration."""
