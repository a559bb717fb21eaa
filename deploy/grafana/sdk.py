"""Turns a board into Grafana's dashboard JSON. The only place that knows the SDK, which is a developer's tool."""

from __future__ import annotations

import zlib
from typing import TypeVar, assert_never

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import Dataquery, PromQueryFormat

from deploy.grafana.model import GREEN, TAG, Board, Cell, Look, Panel, Query, Section, Variable, layout

DATASOURCE = common_model.DataSourceRef(type_val="prometheus", uid="${datasource}")
REF_IDS = "ABCDEFGH"
IN_SIGHT = ""
"""Where a link stands: beside the variables, instead of in the menu that is the SDK's choice."""

_Picture = TypeVar("_Picture", stat.Panel, timeseries.Panel, bargauge.Panel, statetimeline.Panel, table.Panel)


def dashboard_json(board: Board) -> str:
    """The file of one dashboard: keys in order, two spaces, a newline at the end."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG, *board.tags])
        .editable()
        .timezone("browser")
        .time(f"now-{board.hours}h", "now")
        .refresh("1m")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .variables([_datasource(), *(_variable(variable) for variable in board.variables)])
        .links([_to_the_others()])
    )
    for part, cell in layout(board):
        where = model.GridPos(h=cell.h, w=cell.w, x=cell.x, y=cell.y)
        if isinstance(part, Section):
            builder.with_row(dashboard.Row(part.title).id(_row_id(part)).grid_pos(where))
        else:
            builder.with_panel(_panel(part, cell))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(builder.build()) + "\n"


def _row_id(section: Section) -> int:
    # above every panel's
    return 0x40000000 | zlib.crc32(section.title.encode()) & 0x3FFFFFFF


def _datasource() -> Builder[model.VariableModel]:
    return (
        dashboard.DatasourceVariable("datasource")
        .label("Prometheus")
        .description("The Prometheus that scrapes this hub.")
        .type("prometheus")
    )


def _variable(variable: Variable) -> Builder[model.VariableModel]:
    if variable.choices:
        text, value = variable.choices[0]
        return (
            dashboard.CustomVariable(variable.name)
            .label(variable.label)
            .description(variable.description)
            .values(", ".join(f"{text} : {value}" for text, value in variable.choices))
            .current(model.VariableOption(selected=True, text=text, value=value))
        )
    built = (
        dashboard.QueryVariable(variable.name)
        .label(variable.label)
        .description(variable.description)
        .datasource(DATASOURCE)
        .query({"qryType": 1, "query": variable.query, "refId": f"variable-{variable.name}"})
        .definition(variable.query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(variable.several)
        .include_all(variable.several)
    )
    if variable.several:
        built.all_value(".*").current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return built


def _to_the_others() -> Builder[model.DashboardLink]:
    return (
        dashboard.DashboardLink("Dashboards of the hub")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
        .placement(IN_SIGHT)
    )


def _panel(panel: Panel, cell: Cell) -> Builder[model.Panel]:
    match panel.look:
        case Look.STAT:
            mode = common_model.BigValueColorMode.VALUE
            return _framed(stat.Panel().reduce_options(_last()).color_mode(mode), panel, cell)
        case Look.BARS:
            horizontal = common_model.VizOrientation.HORIZONTAL
            return _framed(bargauge.Panel().reduce_options(_last()).orientation(horizontal), panel, cell)
        case Look.LINES | Look.STACK:
            return _framed(_lines(panel), panel, cell)
        case Look.TIMELINE:
            return _framed(statetimeline.Panel().merge_values(True), panel, cell)
        case Look.TABLE:
            return _framed(_table(panel), panel, cell)
    assert_never(panel.look)


def _framed(picture: _Picture, panel: Panel, cell: Cell) -> _Picture:
    """What all pictures have."""
    now = panel.look in (Look.STAT, Look.BARS, Look.TABLE)
    picture = (
        picture.id(panel.id)
        .title(panel.title)
        .description(panel.description)
        .datasource(DATASOURCE)
        .grid_pos(model.GridPos(h=cell.h, w=cell.w, x=cell.x, y=cell.y))
        .unit(panel.unit.value)
        .thresholds(_thresholds(panel))
        .targets(
            [
                _target(query, ref_id, panel, now)
                for query, ref_id in zip(panel.queries, REF_IDS, strict=False)
            ]
        )
    )
    if panel.leads_to is not None:
        link = dashboard.DashboardLink(panel.leads_to.title).url(panel.leads_to.url).placement(IN_SIGHT)
        picture = picture.data_links([link])
    if panel.most is not None:
        picture = picture.min(0).max(panel.most)
    if panel.texts:
        results = {
            str(value): model.ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(panel.texts.items())
        }
        picture = picture.mappings([model.ValueMap(options=results)])
    if panel.look in (Look.STAT, Look.BARS) and (panel.steps or panel.texts):
        picture = picture.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    return picture


def _target(query: Query, ref_id: str, panel: Panel, now: bool) -> Builder[Dataquery]:
    target = prometheus.Dataquery().expr(query.expr).ref_id(ref_id).datasource(DATASOURCE)
    target = target.instant() if now else target.range()
    if panel.look is Look.TABLE:
        return target.format(PromQueryFormat.TABLE)
    return target.legend_format(query.legend or panel.title)


def _thresholds(panel: Panel) -> Builder[model.ThresholdsConfig]:
    base = model.Threshold(value=None, color=GREEN)
    steps = [model.Threshold(value=value, color=colour) for value, colour in panel.steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps([base, *steps])


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def _lines(panel: Panel) -> timeseries.Panel:
    lines = timeseries.Panel().line_width(1).show_points(common_model.VisibilityMode.NEVER)
    legend = common.VizLegendOptions().display_mode(common_model.LegendDisplayMode.TABLE)
    legend = legend.placement(common_model.LegendPlacement.BOTTOM).show_legend(True)
    lines = lines.legend(legend.calcs(["lastNotNull", "max"]))
    if panel.look is Look.STACK:
        stacking = common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A")
        return lines.stacking(stacking).fill_opacity(30).axis_soft_min(0)
    return lines


def _table(panel: Panel) -> table.Panel:
    """Labels first, then a column per query; what is not named is left out."""
    columns = [f"Value #{ref_id}" for ref_id, _ in zip(REF_IDS, panel.queries, strict=False)]
    shown = [*panel.labels, *(["Value"] if len(columns) == 1 else columns)]
    headings = dict(panel.labels) | dict(
        zip(shown[len(panel.labels) :], (query.legend for query in panel.queries), strict=True)
    )
    keep = model.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": shown}})
    merge = model.DataTransformerConfig(id_val="merge", options={})
    order = {name: index for index, name in enumerate(shown)}
    name = model.DataTransformerConfig(
        id_val="organize", options={"indexByName": order, "renameByName": headings, "excludeByName": {}}
    )
    built = table.Panel().show_header(True).transformations([merge, keep, name])
    for query in panel.queries:
        unit = (query.unit or panel.unit).value
        built.override_by_name(query.legend, [model.DynamicConfigValue(id_val="unit", value=unit)])
    return built
