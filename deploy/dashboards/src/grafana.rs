//! A dashboard in Grafana's own form.

use serde_json::{Value, json};

use crate::{Dashboard, Kind, Panel, Unit};

/// Of the form, of Grafana 10.
const SCHEMA: u32 = 38;
/// Of a dashboard's 24 columns.
const WIDE: usize = 8;
const NARROW: usize = 4;
const HIGH: usize = 8;
const LOW: usize = 4;
const COLUMNS: usize = 24;

pub fn json(dashboard: &Dashboard) -> String {
    let mut panels = Vec::new();
    let mut top = 0;
    for row in dashboard.rows {
        panels.push(json!({
            "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }));
        top += 1;
        let (mut left, mut height) = (0, 0);
        for shown in row.panels {
            let (wide, high) = size(shown);
            if left + wide > COLUMNS {
                (left, top, height) = (0, top + height, 0);
            }
            let place = json!({"x": left, "y": top, "w": wide, "h": high});
            panels.push(panel(shown, &place, dashboard.of_deployment));
            left += wide;
            height = height.max(high);
        }
        top += height;
    }
    for (id, panel) in panels.iter_mut().enumerate() {
        panel["id"] = json!(id + 1);
    }
    let dashboard = json!({
        "uid": format!("sextant-{}", dashboard.name),
        "title": format!("Sextant / {}", dashboard.title),
        "tags": ["sextant"],
        "schemaVersion": SCHEMA,
        "editable": false,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "templating": {"list": variables(dashboard.of_deployment)},
        "links": [{"type": "dashboards", "tags": ["sextant"], "title": "Sextant", "keepTime": true, "includeVars": true}],
        "panels": panels,
    });
    let mut text = serde_json::to_string_pretty(&dashboard).unwrap_or_default();
    text.push('\n');
    text
}

fn size(panel: &Panel) -> (usize, usize) {
    match panel.kind {
        Kind::Series => (WIDE, HIGH),
        Kind::Stat | Kind::Text => (NARROW, LOW),
    }
}

fn panel(panel: &Panel, place: &Value, of_deployment: bool) -> Value {
    let source = json!({"type": "prometheus", "uid": "${source}"});
    let kind = match panel.kind {
        Kind::Series => "timeseries",
        Kind::Stat => "stat",
        Kind::Text => "text",
    };
    let mut json = json!({
        "type": kind, "title": panel.title, "description": panel.about, "gridPos": place,
    });
    if panel.kind == Kind::Text {
        json["options"] = json!({"mode": "markdown", "content": panel.about});
        return json;
    }
    let chosen = r#"namespace=~"$namespace",search_deployment=~"$deployment""#;
    let chosen = if of_deployment { chosen } else { "" };
    let queries = panel.expressions(chosen).zip(panel.queries).zip('A'..='Z');
    json["targets"] = queries
        .map(|((expression, (_, legend)), letter)| {
            json!({
                "refId": letter.to_string(), "datasource": source,
                "expr": expression, "legendFormat": legend,
            })
        })
        .collect();
    json["datasource"] = source;
    json["fieldConfig"] = json!({"defaults": defaults(panel.unit), "overrides": []});
    json["options"] = match panel.kind {
        Kind::Stat => json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"}),
        _ => json!({
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }),
    };
    json
}

fn defaults(unit: Unit) -> Value {
    let (name, max) = match unit {
        Unit::Seconds => ("s", None),
        Unit::Bytes => ("bytes", None),
        Unit::Share => ("percentunit", Some(1)),
        Unit::Count => ("short", None),
        Unit::PerSecond => ("cps", None),
        Unit::YesNo => ("bool_yes_no", Some(1)),
    };
    let mut defaults = json!({"unit": name, "min": 0});
    if let Some(max) = max {
        defaults["max"] = json!(max);
    }
    defaults
}

fn variables(of_deployment: bool) -> Value {
    let source = json!({"type": "prometheus", "uid": "${source}"});
    let query = |name: &str, query: &str| {
        json!({
            "name": name, "type": "query", "datasource": source, "query": query, "refresh": 2,
            "sort": 1, "includeAll": true, "multi": true, "current": {"text": "All", "value": "$__all"},
        })
    };
    let mut list = vec![json!({
        "name": "source", "label": "data source", "type": "datasource", "query": "prometheus",
    })];
    if of_deployment {
        list.push(query("namespace", "label_values(sextant_build_info, namespace)"));
        list.push(query(
            "deployment",
            r#"label_values(sextant_build_info{namespace=~"$namespace"}, search_deployment)"#,
        ));
    }
    Value::from(list)
}
