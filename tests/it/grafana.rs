//! The dashboards for Grafana: a real Prometheus that has scraped a real daemon in trouble answers whatever they ask, and
//! they are whole in themselves. What Grafana makes of them for the eye, nothing here can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::certificates::Certified;
use crate::support::client::{connect, job, run_psql};
use crate::support::postgres::{PASSWORD, SCRAM};
use crate::support::prometheus::Prometheus;
use crate::support::{Daemon, Fault, Postgres, Relay, eventually, free_port, runtime};

/// Those that need no plugin, in all of Grafana 10 to 12.
const BUILT_IN: [&str; 5] = ["heatmap", "stat", "state-timeline", "table", "timeseries"];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/grafana")
}

fn dashboards() -> Vec<Value> {
    ["overview", "detail"]
        .map(|name| {
            let text = fs::read_to_string(directory().join(format!("{name}.json"))).unwrap();
            serde_json::from_str(&text).unwrap()
        })
        .to_vec()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("there is no {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Rows, and the panels of collapsed ones, as well.
fn all_panels(dashboard: &Value) -> Vec<&Value> {
    list(dashboard, "panels")
        .iter()
        .flat_map(|panel| [panel].into_iter().chain(list(panel, "panels")))
        .collect()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    all_panels(dashboard).into_iter().filter(|panel| panel["type"] != "row").collect()
}

fn annotations(dashboard: &Value) -> &[Value] {
    list(&dashboard["annotations"], "list")
}

fn variables(dashboard: &Value) -> &[Value] {
    list(&dashboard["templating"], "list")
}

fn variable_names(dashboard: &Value) -> BTreeSet<&str> {
    variables(dashboard).iter().map(|variable| text(variable, "name")).collect()
}

/// Everything that a dashboard asks Prometheus, each with its place.
fn questions(dashboard: &Value) -> Vec<(String, &str)> {
    let place = |part: &Value, name| format!("{} / {}", text(dashboard, "title"), text(part, name));
    let of_panel = |panel| {
        list(panel, "targets").iter().map(move |target| (place(panel, "title"), text(target, "expr")))
    };
    let mut questions: Vec<(String, &str)> = panels(dashboard).into_iter().flat_map(of_panel).collect();
    questions.extend(annotations(dashboard).iter().map(|part| (place(part, "name"), text(part, "expr"))));
    let asking = variables(dashboard).iter().filter(|variable| variable["type"] == "query");
    questions.extend(asking.map(|variable| (place(variable, "name"), text(variable, "query"))));
    questions
}

/// All values of a key, however deep.
fn values<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    match value {
        Value::Object(map) => {
            let here = map.get(key).and_then(Value::as_str);
            here.into_iter().chain(map.values().flat_map(|value| values(value, key))).collect()
        }
        Value::Array(list) => list.iter().flat_map(|value| values(value, key)).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn the_dashboards_are_whole() {
    let dashboards = dashboards();
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    assert_eq!(files.count(), dashboards.len());
    let mut checked = 0;
    for dashboard in &dashboards {
        let mut ids = BTreeSet::new();
        for panel in all_panels(dashboard) {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have an id: {panel}");
        }
        for panel in panels(dashboard) {
            let title = text(panel, "title");
            assert!(
                BUILT_IN.contains(&text(panel, "type")),
                "{title} is of a type that Grafana may not have"
            );
            assert!(text(panel, "description").ends_with('.'), "{title} does not say what to look for");
            let defaults = &panel["fieldConfig"]["defaults"];
            let unit = [&defaults["unit"], &defaults["mappings"], &panel["options"]["yAxis"]["unit"]];
            assert!(unit.iter().any(|unit| !unit.is_null()), "{title} has no unit");
            let references: BTreeSet<&str> =
                list(panel, "targets").iter().map(|target| text(target, "refId")).collect();
            assert!(
                !references.is_empty() && references.len() == list(panel, "targets").len(),
                "{title}: refId"
            );
            checked += 1;
        }
        let source = json!({ "type": "prometheus", "uid": "${datasource}" });
        let asking = variables(dashboard).iter().filter(|variable| variable["type"] == "query");
        for part in panels(dashboard).into_iter().chain(annotations(dashboard)).chain(asking) {
            assert_eq!(part["datasource"], source, "{part}");
        }
        assert_eq!(text(&variables(dashboard)[0], "type"), "datasource");
        assert!(dashboard["id"].is_null() && dashboard["__inputs"].is_null());
        nothing_overlaps(dashboard);
    }
    assert!(checked >= 60, "only {checked} panels were checked");
    assert_ne!(dashboards[0]["uid"], dashboards[1]["uid"]);
}

/// Each place of the grid is taken once, and none is beyond its 24 columns. Collapsed rows are grids of their own.
fn nothing_overlaps(dashboard: &Value) {
    let collapsed = list(dashboard, "panels").iter().map(|row| list(row, "panels"));
    for grid in collapsed.chain([list(dashboard, "panels")]) {
        let mut taken = BTreeSet::new();
        for panel in grid {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24, "{} is too wide", text(panel, "title"));
            let places = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y)));
            for place in places {
                assert!(taken.insert(place), "{} lies over another panel", text(panel, "title"));
            }
        }
    }
}

#[test]
fn the_dashboards_lead_to_each_other() {
    let dashboards = dashboards();
    let mut links = 0;
    for (from, to) in [(&dashboards[0], &dashboards[1]), (&dashboards[1], &dashboards[0])] {
        for url in values(from, "url") {
            let (path, variables) = url.split_once('?').unwrap_or((url, ""));
            assert_eq!(path, format!("/d/{}", text(to, "uid")));
            for variable in variables.split('&').filter_map(|part| part.strip_prefix("var-")) {
                let name = variable.split('=').next().unwrap();
                assert!(variable_names(to).contains(name), "{url} sets a variable that is not there");
            }
            links += 1;
        }
        let carried = |link: &Value| link["includeVars"] == true && link["keepTime"] == true;
        assert!(!list(from, "links").is_empty() && list(from, "links").iter().all(carried));
    }
    assert!(links >= 5, "only {links} links were checked");
    assert!(variable_names(&dashboards[0]).is_subset(&variable_names(&dashboards[1])));
}

/// The daemon, and what it has been through.
struct Scene {
    /// What the daemon exposed while its sessions were cut.
    cut: String,
    daemon: Daemon,
    prometheus: Prometheus,
    _relay: Relay,
    _certified: Certified,
}

/// A tunnel that is cut at one age, drops and returns, another that never comes up, a database that the bastion does not reach, queries with and
/// without encryption, an error, clients held, cut and turned away, and configurations refused and loaded; all of it seen by
/// Prometheus.
fn scene() -> Scene {
    let mut certified = Certified::start();
    let relay = Relay::before(certified.bastion.port);
    let key = certified.key("key", &["-t", "ed25519"]);
    certified.sign(&key, certified.user(), "-1h:+365d");
    let identity = format!("identity = {:?}\nkeepalive_interval = \"1s\"\n", key.display().to_string());
    let probe = "probe = { interval = \"1s\" }\n";
    let postgres = Postgres::shared();
    let unreached = postgres
        .section("unreached", "prod")
        .replace(&format!("port = {}\n", postgres.port), &format!("port = {}\n", free_port()));
    let config = format!(
        "{}{}{}{}{probe}{unreached}{probe}{}hold = {{ timeout = \"0s\" }}\n",
        certified.bastion.keyless_section("prod", relay.port),
        identity,
        certified.bastion.section("gone", free_port()),
        postgres.section("analytics", "prod"),
        postgres.unprobed_section("lost", "gone"),
    );
    relay.set(Fault::CutOld(Duration::from_secs(5)));
    let daemon = Daemon::start(&config);
    daemon.wait_up("prod");
    let target = daemon.url().trim_start_matches("http://").to_owned();
    let prometheus = Prometheus::start(&format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: tunnelkeeper\n  static_configs:\n  - targets: [\"{target}\"]\n"
    ));
    let seen = |promql: &str| {
        eventually(&format!("Prometheus sees {promql}"), || {
            (!prometheus.query(promql).as_array().unwrap().is_empty()).then_some(())
        });
    };
    seen("tunnelkeeper_session_cut_seconds{bastion=\"prod\", after=\"age\"}");
    // What is forgotten later.
    let cut = daemon.get("/metrics").1;
    relay.set(Fault::None);
    seen("tunnelkeeper_tunnel_up{bastion=\"prod\"} == 1");

    let (runtime, address) = (runtime(), daemon.address("analytics"));
    run_psql(address, "user=trusted sslmode=disable", "SELECT 1 / 0").unwrap_err();
    let encrypted = format!("user={SCRAM} password='{PASSWORD}' sslmode=require");
    run_psql(address, &encrypted, "SELECT 1").unwrap();
    run_psql(daemon.address("lost"), "user=trusted sslmode=disable", "SELECT 1").unwrap_err();
    let _cut = runtime.block_on(connect(address)).unwrap();
    certified.bastion.kill();
    let held = runtime.spawn(job(address));
    seen("tunnelkeeper_clients_held{database=\"analytics\"} == 1");
    seen("tunnelkeeper_session_failures_total{bastion=\"prod\", phase=\"banner\"} > 0");
    seen("tunnelkeeper_tunnel_up{bastion=\"prod\"} == 0");
    certified.bastion.start_again();
    runtime.block_on(held).unwrap();

    assert_eq!(daemon.reload(&format!("{config}frobnicate = 1\n")).len(), 1);
    seen("tunnelkeeper_config_last_reload_successful == 0");
    // Its login is refused and asked for anew after a while, so that one more is counted between two looks.
    let signed = postgres.signed_section("signed", "prod");
    assert!(daemon.reload(&format!("{config}{signed}probe = {{ interval = \"5s\" }}\n")).is_empty());
    seen("tunnelkeeper_config_last_reload_successful == 1");
    seen("increase(tunnelkeeper_credential_mints_total{result=\"ok\"}[5m]) > 0");
    seen("tunnelkeeper_tunnel_up{bastion=\"prod\"} == 1");
    Scene { cut, daemon, prometheus, _relay: relay, _certified: certified }
}

/// As Grafana puts a value into a regular expression within a string.
fn escaped(value: &str) -> String {
    let special = |c| "\\$^*{}[]'+?.()|".contains(c);
    value.chars().map(|c| if special(c) { format!("\\\\{c}") } else { c.to_string() }).collect()
}

/// Puts the variables' values in, as Grafana does. The time range is the last hour, which the scene is much shorter than.
fn filled(question: &str, chosen: &BTreeMap<String, String>) -> String {
    let mut filled = question.replace("$__rate_interval", "5m").replace("$__range", "1h");
    for (name, value) in chosen {
        filled = filled.replace(&format!("${name}"), value);
    }
    assert!(!filled.contains('$'), "a variable is not known: {filled}");
    filled
}

/// What Grafana lets a person choose from.
fn choices(prometheus: &Prometheus, variable: &Value, chosen: &BTreeMap<String, String>) -> BTreeSet<String> {
    let query = filled(text(variable, "query"), chosen);
    let arguments = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let (selector, label) = arguments.and_then(|arguments| arguments.rsplit_once(", ")).unwrap();
    let found = prometheus.query(&format!("group by ({label}) ({selector})"));
    found.as_array().unwrap().iter().map(|series| text(&series["metric"], label).to_owned()).collect()
}

/// Everything, where a variable may be everything, and the bastion that lives.
fn choose(prometheus: &Prometheus, dashboard: &Value) -> BTreeMap<String, String> {
    let mut chosen = BTreeMap::new();
    for variable in variables(dashboard).iter().filter(|variable| variable["type"] == "query") {
        let name = text(variable, "name");
        let choices = choices(prometheus, variable, &chosen);
        let value = if variable["includeAll"] == true {
            let all: Vec<String> = choices.iter().map(|choice| escaped(choice)).collect();
            if all.len() == 1 { all[0].clone() } else { format!("({})", all.join("|")) }
        } else {
            assert!(choices.contains("prod"), "{name} is one of {choices:?}");
            "prod".to_owned()
        };
        chosen.insert(name.to_owned(), value);
    }
    chosen
}

/// The series of an answer, once there is a number among them.
fn answer(prometheus: &Prometheus, query: &str) -> Vec<Value> {
    eventually(&format!("there is a number in the answer to {query}"), || {
        let Value::Array(series) = prometheus.query(query) else { return None };
        series.iter().any(|series| series["value"][1] != "NaN").then_some(series)
    })
}

/// A label that a text names in double braces, and that a series does not have, is an empty place.
fn fits(format: &Value, series: &[Value]) {
    let format = format.as_str().unwrap_or_default();
    for label in format.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap()) {
        assert!(
            series.iter().all(|series| series["metric"][label].is_string()),
            "{format:?} does not fit {series:?}"
        );
    }
}

#[test]
fn every_question_of_a_dashboard_has_an_answer() {
    let scene = scene();
    let prometheus = &scene.prometheus;
    every_series_is_shown(&format!("{}{}", scene.cut, scene.daemon.get("/metrics").1));
    let (mut asked, mut drawn) = (0, 0);
    for dashboard in dashboards() {
        let chosen = choose(prometheus, &dashboard);
        for target in panels(&dashboard).into_iter().flat_map(|panel| list(panel, "targets")) {
            fits(&target["legendFormat"], &answer(prometheus, &filled(text(target, "expr"), &chosen)));
            asked += 1;
        }
        for annotation in annotations(&dashboard) {
            // Grafana draws one wherever the value is above zero.
            let query = filled(text(annotation, "expr"), &chosen);
            let series = answer(prometheus, &format!("max_over_time(({query})[5m:1s]) > 0"));
            fits(&annotation["titleFormat"], &series);
            fits(&annotation["textFormat"], &series);
            drawn += 1;
        }
    }
    assert!(asked >= 90, "only {asked} queries were asked");
    assert!(drawn >= 8, "only {drawn} annotations were drawn");
}

/// No name is there that the daemon does not have, and no series of its own that no dashboard shows.
fn every_series_is_shown(exposition: &str) {
    let types = exposition.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: BTreeMap<&str, &str> = types.map(|line| line.split_once(' ').unwrap()).collect();
    let dashboards = dashboards();
    let mut shown = BTreeSet::new();
    for (place, question) in dashboards.iter().flat_map(questions) {
        let words = question.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("tunnelkeeper_") || word.starts_with("process_")) {
            let part = ["_bucket", "_count", "_sum"].iter().find_map(|part| word.strip_suffix(part));
            let family = part.filter(|family| families.get(family) == Some(&"histogram")).unwrap_or(word);
            assert!(families.contains_key(family), "{place} names {word}");
            shown.insert(family);
        }
    }
    let own = families.keys().filter(|family| family.starts_with("tunnelkeeper_"));
    let hidden: Vec<&&str> = own.filter(|family| !shown.contains(**family)).collect();
    assert!(hidden.is_empty(), "no dashboard shows {hidden:?}");
    assert!(shown.len() >= 35, "only {} series are shown", shown.len());
}
