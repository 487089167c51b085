"""The command line: argv -> settings -> supervisor, or a request to the process that runs. One small file a group."""
