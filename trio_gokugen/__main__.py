"""What ``python -m trio_gokugen`` runs."""

from ._cli import main

raise SystemExit(main())
