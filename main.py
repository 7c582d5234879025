"""IBIS Label: the MONAI Label app (class IBISApp) and the command line (`python main.py --help`).

`monailabel start_server --app . --studies FOLDER` loads this file as a module and finds the app; run as a program it is the
command line, which must not wait for MONAI Label's imports. A process that the command line starts loads it under a third name,
`__mp_main__` (multiprocessing), and needs neither.
"""

if __name__ == "__main__":
    from apps.cli import main

    main()
elif __name__ != "__mp_main__":
    from lib.server.app import IBISApp

    __all__ = ["IBISApp"]
