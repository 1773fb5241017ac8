"""`python -m jrm_plugin.cli`, for launchers: `accelerate launch -m jrm_plugin.cli train --config x.yaml`."""

from jrm_plugin.cli.app import main

main()
