"""The hub's dashboards, one file each."""

from deploy.grafana.boards.firm import FIRM
from deploy.grafana.boards.nodes import NODES
from deploy.grafana.boards.operators import OPERATORS
from deploy.grafana.boards.overview import OVERVIEW
from deploy.grafana.boards.scheduler import SCHEDULER
from deploy.grafana.boards.trust import TRUST

BOARDS = (OVERVIEW, FIRM, OPERATORS, NODES, SCHEDULER, TRUST)
