"""What ``python -m trio_gokugen`` runs."""

from ._command import main

raise SystemExit(main())
