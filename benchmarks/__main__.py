"""`python -m benchmarks`: the requests. Rotation and the audit log have modules of their own."""

from benchmarks.bench import main

raise SystemExit(main())
