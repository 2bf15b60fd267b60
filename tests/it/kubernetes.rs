//! The Kubernetes manifests: rendered by kubectl, held against the published schemas and against each other; and their
//! configuration, in volumes as the kubelet makes them, before the real daemon in the root of its image.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use data_encoding::BASE64;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::container::{Image, USER, file, may_change_root};
use crate::support::account::find;
use crate::support::bastion::public_line;
use crate::support::client::{Job, job, said};
use crate::support::daemon::{configured, run};
use crate::support::postgres::{DATABASE, PASSWORD, SCRAM};
use crate::support::processes::{children, kill_families};
use crate::support::{Bastion, Daemon, Postgres, eventually, runtime};

/// What is rendered, and the kinds that it consists of.
const VARIANTS: [(&str, &[&str]); 3] = [
    ("service", &["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"]),
    (
        "example",
        &[
            "ConfigMap",
            "Deployment",
            "Namespace",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "PodMonitor",
            "Service",
        ],
    ),
    ("sidecar", &["ConfigMap", "Job"]),
];

/// Beyond what it waits for, the daemon takes this long at most to end (s).
const GOODBYE: u64 = 10;

/// What the programs of a pod take beside the data of clients (MiB).
const ASIDE: u64 = 64;

fn directory(name: &str) -> PathBuf {
    file("deploy/kubernetes").join(name)
}

/// Runs a program with the modules that tests/it/kubernetes/prepare has installed; what it printed, or what it complained of.
fn python(arguments: &[&str], input: &[u8]) -> Result<String, String> {
    let python = file("target/python/bin/python3");
    assert!(python.exists(), "what judges manifests is not there: run tests/it/kubernetes/prepare");
    let mut command = Command::new(python);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(input).unwrap();
    let output = running.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// The documents of a YAML file.
fn documents(yaml: &[u8]) -> Vec<Value> {
    let script =
        "import json, sys, yaml; print(json.dumps([each for each in yaml.safe_load_all(sys.stdin) if each]))";
    serde_json::from_str(&python(&["-c", script], yaml).unwrap()).unwrap()
}

/// Holds manifests against the schemas; how many, or what is wrong with them.
fn judge(manifests: &[u8]) -> Result<usize, String> {
    let script = file("tests/it/kubernetes/judge.py");
    let judged = python(&[script.to_str().unwrap()], manifests)?;
    Ok(judged.lines().filter(|line| line.starts_with("good: ")).count())
}

fn kustomize(variant: &str) -> Vec<u8> {
    let output = Command::new(find("kubectl")).arg("kustomize").arg(directory(variant)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn rendered(variant: &str) -> Vec<Value> {
    documents(&kustomize(variant))
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    manifests.iter().find(|manifest| manifest["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

/// The pods that they make.
fn pod_template(manifests: &[Value]) -> &Value {
    manifests.iter().find_map(|manifest| manifest.pointer("/spec/template")).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(pod, "initContainers").chain(list(pod, "containers"))
}

fn daemon_of(pod: &Value) -> &Value {
    containers(pod).find(|container| container["name"] == "tunnelkeeper").unwrap()
}

/// Every key in force, as the daemon itself reads the ConfigMap.
fn configuration(manifests: &[Value]) -> BTreeMap<String, Value> {
    let (_dir, path) = configured(text(&of_kind(manifests, "ConfigMap")["data"]["tunnelkeeper.toml"]));
    let output = run(&path, &["config", "show", "--format", "json"]);
    assert!(output.status.success(), "{output:?}");
    let keys: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    keys.iter().map(|key| (text(&key["key"]).to_owned(), key["value"].clone())).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

#[test]
fn every_manifest_holds_against_the_published_schemas() {
    let mut judged = 0;
    for (variant, kinds) in VARIANTS {
        let rendered = kustomize(variant);
        let manifests = documents(&rendered);
        let mut found: Vec<&str> = manifests.iter().map(|manifest| text(&manifest["kind"])).collect();
        found.sort_unstable();
        assert_eq!(found, kinds, "{variant}");
        assert_eq!(judge(&rendered).unwrap(), found.len());
        judged += found.len();
    }
    assert_eq!(judged, 14);
    for (variant, wrong) in [("service", "maxUnavailable"), ("example", "jobLabel")] {
        let manifests = String::from_utf8(kustomize(variant)).unwrap().replace(wrong, "nothingOfThisName");
        let refused = judge(manifests.as_bytes()).unwrap_err();
        assert!(refused.contains("nothingOfThisName"), "{refused}");
    }
}

#[test]
fn every_file_is_in_a_kustomization() {
    let mut files = 0;
    for variant in fs::read_dir(file("deploy/kubernetes")).unwrap().map(|entry| entry.unwrap().path()) {
        let kustomization = fs::read_to_string(variant.join("kustomization.yaml")).unwrap();
        for entry in fs::read_dir(&variant).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            files += 1;
            let listed = kustomization.lines().any(|line| line.trim_start() == format!("- {name}"));
            let is_told = kustomization.contains(&format!("./{name} "));
            assert!(listed || is_told || name == "kustomization.yaml", "{name} is in no kustomization");
        }
    }
    assert_eq!(files, 14);
}

#[test]
fn pods_get_no_more_than_they_need() {
    let mut checked = 0;
    for variant in ["service", "sidecar"] {
        let manifests = rendered(variant);
        let pod = &pod_template(&manifests)["spec"];
        assert_eq!(pod["automountServiceAccountToken"], false);
        let expected = json!({
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": { "type": "RuntimeDefault" },
        });
        assert_eq!(pod["securityContext"], expected, "{variant}");
        for container in containers(pod) {
            let expected = json!({
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": { "drop": ["ALL"] },
            });
            assert_eq!(container["securityContext"], expected, "{variant}");
            assert!(container.pointer("/resources/limits/memory").is_some());
            assert!(container.pointer("/resources/requests/cpu").is_some());
            checked += 1;
        }
        let configuration = configuration(&manifests);
        let memory =
            text(&daemon_of(pod)["resources"]["limits"]["memory"]).trim_end_matches("Mi").parse::<u64>();
        let buffers = text(&configuration["daemon.buffer_memory"]).trim_end_matches("MiB").parse::<u64>();
        assert!(
            memory.unwrap() >= buffers.unwrap() + ASIDE,
            "{variant}: clients' data may be more than the limit"
        );
        assert_eq!(configuration["daemon.generate_keys"], false);
        assert_eq!(configuration["http.allow_remote_status"], false);
        let patience = humantime::parse_duration(text(&configuration["daemon.drain_timeout"])).unwrap();
        let before =
            daemon_of(pod).pointer("/lifecycle/preStop/sleep/seconds").map_or(0, |s| s.as_u64().unwrap());
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        assert!(grace >= before + patience.as_secs() + GOODBYE, "{variant}: a drain would be cut short");
    }
    assert_eq!(checked, 3);
}

/// What selects the pods has to select them, and what names a port has to mean one where the daemon listens.
#[test]
fn selectors_and_ports_lead_to_the_daemon() {
    let manifests = rendered("example");
    let template = pod_template(&manifests);
    let labels = &template["metadata"]["labels"];
    let mut selectors = 0;
    let mut selects = |selector: &Value| {
        let wanted = selector.get("matchLabels").unwrap_or(selector).as_object().unwrap();
        assert!(
            !wanted.is_empty() && wanted.iter().all(|(name, value)| labels[name] == *value),
            "{selector}"
        );
        selectors += 1;
    };
    selects(&of_kind(&manifests, "Deployment")["spec"]["selector"]);
    selects(&of_kind(&manifests, "Service")["spec"]["selector"]);
    selects(&of_kind(&manifests, "PodDisruptionBudget")["spec"]["selector"]);
    selects(&of_kind(&manifests, "NetworkPolicy")["spec"]["podSelector"]);
    selects(&of_kind(&manifests, "PodMonitor")["spec"]["selector"]);
    list(&template["spec"], "topologySpreadConstraints").for_each(|spread| selects(&spread["labelSelector"]));
    assert_eq!(selectors, 7);

    let configuration = configuration(&manifests);
    let port_of = |listen: &Value| text(listen).rsplit(':').next().unwrap().parse::<u64>().unwrap();
    let daemon = daemon_of(&template["spec"]);
    let ports: BTreeMap<&str, &Value> =
        list(daemon, "ports").map(|port| (text(&port["name"]), &port["containerPort"])).collect();
    let expected = [
        ("analytics", json!(port_of(&configuration["databases.analytics.listen"][0]))),
        ("http", json!(port_of(&configuration["http.listen"]))),
    ];
    assert!(ports.iter().map(|(name, port)| (*name, (*port).clone())).eq(expected), "{ports:?}");
    let mut named = 0;
    let mut leads_to = |port: &Value, expected: &str| {
        assert_eq!(port, expected);
        named += 1;
    };
    leads_to(&of_kind(&manifests, "Service")["spec"]["ports"][0]["targetPort"], "analytics");
    let ingress = &of_kind(&manifests, "NetworkPolicy")["spec"]["ingress"];
    leads_to(&ingress[0]["ports"][0]["port"], "analytics");
    leads_to(&ingress[1]["ports"][0]["port"], "http");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        leads_to(&daemon[probe]["httpGet"]["port"], "http");
    }
    let monitor = &of_kind(&manifests, "PodMonitor")["spec"];
    assert_eq!(labels[text(&monitor["jobLabel"])], "tunnelkeeper");
    leads_to(&monitor["podMetricsEndpoints"][0]["port"], "http");
    assert_eq!(monitor["podMetricsEndpoints"][0]["path"], "/metrics");
    assert_eq!(named, 7);
    assert_eq!(of_kind(&manifests, "NetworkPolicy")["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
}

#[test]
fn rule_files_become_objects_for_the_operator() {
    let dir = TempDir::new().unwrap();
    let own = dir.path().join("own.rules.yml");
    let rule = "# The first line.\n---\ngroups:\n\n- name: own\n  rules:\n    - alert: Down\n      expr: |\n        up == 0\n\n          or absent(up)\n      annotations: {summary: \"it's down: {{ $labels.bastion }}\"}\n";
    fs::write(&own, rule).unwrap();
    let ours = fs::read_dir(file("dashboards/prometheus")).into_iter().flatten();
    let ours = ours.map(|entry| entry.unwrap().path()).filter(|path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line == "groups:")
    });
    let files: Vec<PathBuf> = ours.chain([own]).collect();
    let script = directory("monitoring").join("prometheus-rules");
    let output = Command::new(script).args(&files).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(judge(&output.stdout).unwrap(), files.len());
    for (made, path) in documents(&output.stdout).iter().zip(&files) {
        assert_eq!(made["kind"], "PrometheusRule");
        let name = text(&made["metadata"]["name"]);
        let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.starts_with("tunnelkeeper-") && name.chars().all(is_good), "{name}");
        assert_eq!(made["spec"], documents(&fs::read(path).unwrap())[0], "{}", path.display());
    }
}

/// The manual's commands.
fn manual() -> String {
    fs::read_to_string(file("deploy/README.md")).unwrap()
}

/// The Secret that the manual's command makes of these files, for a bastion of the tests, which lets the key in as the
/// manual says.
fn secret(bastion: &Bastion) -> BTreeMap<String, String> {
    let public = public_line(&bastion.path("identity"));
    let (manual, target) = (manual(), format!("127.0.0.1:{}", Postgres::shared().port));
    let line = manual.lines().find_map(|line| line.strip_prefix("echo \"")?.strip_suffix('"')).unwrap();
    let line = line.replace("\\\"", "\"").replace("analytics.internal:5432", &target);
    bastion.authorize(&line.replace("$(cat prod.pub)", &public));
    let dir = TempDir::new().unwrap();
    let files = [
        ("prod", fs::read_to_string(bastion.path("identity")).unwrap()),
        ("known_hosts", bastion.known_hosts_line(bastion.port)),
        ("analytics-password", PASSWORD.to_owned()),
    ];
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let words = manual.split("kubectl create").nth(1).unwrap().split("```").next().unwrap();
    let words = words.split_whitespace().filter(|word| *word != "\\");
    let mut command = Command::new(find("kubectl"));
    command.arg("create").args(words).args(["--dry-run=client", "--output=json"]).current_dir(dir.path());
    let made: Value = serde_json::from_str(&said(&mut command).unwrap()).unwrap();
    let decoded = |value: &Value| BASE64.decode(text(value).as_bytes()).unwrap();
    let data = made["data"].as_object().unwrap().iter();
    data.map(|(name, value)| (name.clone(), String::from_utf8(decoded(value)).unwrap())).collect()
}

/// The image with the volumes of a variant's daemon.
fn pod(variant: &str, secret: &BTreeMap<String, String>) -> Image {
    let image = Image::assemble();
    let manifests = rendered(variant);
    let spec = &pod_template(&manifests)["spec"];
    let mut mounted = 0;
    for mount in list(daemon_of(spec), "volumeMounts") {
        let volume = list(spec, "volumes").find(|volume| volume["name"] == mount["name"]).unwrap();
        let at = text(&mount["mountPath"]);
        let mode = |source: &Value| u32::try_from(source["defaultMode"].as_u64().unwrap()).unwrap();
        if let Some(source) = volume.get("configMap") {
            let map = of_kind(&manifests, "ConfigMap");
            assert_eq!(map["metadata"]["name"], source["name"]);
            image.mount(at, mode(source), &serde_json::from_value(map["data"].clone()).unwrap());
        } else {
            image.mount(at, mode(&volume["secret"]), secret);
        }
        mounted += 1;
    }
    assert_eq!(mounted, 2);
    image
}

/// The daemon of a pod.
struct Running(Daemon);

impl Running {
    /// Nothing of the configuration is changed but where bastion and database are, and the ports.
    fn start(image: &Image, bastion: &Bastion) -> Self {
        let mut command = image.command(&["run"]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        for (key, value) in [
            ("HTTP__LISTEN", "127.0.0.1:0"),
            ("BASTIONS__PROD__HOST", "127.0.0.1"),
            ("BASTIONS__PROD__PORT", &bastion.port.to_string()),
            ("BASTIONS__PROD__USER", &bastion.account.name),
            ("DATABASES__ANALYTICS__HOST", "127.0.0.1"),
            ("DATABASES__ANALYTICS__PORT", &Postgres::shared().port.to_string()),
            ("DATABASES__ANALYTICS__LISTEN", "127.0.0.1:0"),
            ("DATABASES__ANALYTICS__DATABASE", DATABASE),
            ("DATABASES__ANALYTICS__USER", SCRAM),
        ] {
            command.env(format!("TUNNELKEEPER__{key}"), value);
        }
        Self(Daemon::spawn(TempDir::new().unwrap(), command))
    }

    /// What `unshare` has started.
    fn pid(&self) -> u32 {
        children(self.0.pid())[0]
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_families(children(self.0.pid()));
    }
}

#[test]
fn the_service_runs_with_what_its_volumes_hold() {
    if !may_change_root() {
        return;
    }
    let bastion = Bastion::start();
    let image = pod("service", &secret(&bastion));
    let before = image.files();
    let checked = image.command(&["config", "check"]).output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    assert!(
        checked.status.success() && said.starts_with("the configuration is good: 1 bastion, 1 database"),
        "{said}"
    );
    let mut daemon = Running::start(&image, &bastion);
    daemon.0.wait_up("prod");
    assert_eq!(daemon.0.status()["daemon"]["pid"], 1);
    eventually("the probe has logged in", || (daemon.0.get("/readyz/analytics").0 == 200).then_some(()));
    let manifests = rendered("service");
    let container = daemon_of(&pod_template(&manifests)["spec"]);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(daemon.0.get(text(&container[probe]["httpGet"]["path"])).0, 200, "{probe}");
    }
    assert_eq!(daemon.0.get("/metrics").0, 200);
    assert_eq!(runtime().block_on(job(daemon.0.address("analytics"))), Job::Done);
    daemon.signal(Signal::SIGHUP);
    daemon.0.wait_event("the configuration has been reloaded");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.0.wait().code(), Some(0));
    daemon.0.wait_event("stopped");
    assert_eq!(image.files(), before, "it has written where it may not");
}

#[test]
fn the_side_car_says_when_the_job_may_begin() {
    if !may_change_root() {
        return;
    }
    let mut bastion = Bastion::start();
    let image = pod("sidecar", &secret(&bastion));
    bastion.kill();
    let daemon = Running::start(&image, &bastion);
    let manifests = rendered("sidecar");
    let probe = &daemon_of(&pod_template(&manifests)["spec"])["startupProbe"]["exec"]["command"];
    let words: Vec<&str> = probe.as_array().unwrap().iter().map(text).collect();
    assert_eq!(words[0], "tunnelkeeper");
    let asked = || image.command(&words[1..]).env("TUNNELKEEPER_URL", daemon.0.url()).output().unwrap();
    let before = asked();
    assert_eq!(before.status.code(), Some(1), "{before:?}");
    assert!(String::from_utf8_lossy(&before.stderr).contains("analytics"), "{before:?}");
    bastion.start_again();
    eventually("the startup probe passes", || asked().status.success().then_some(()));
}

#[test]
fn a_key_that_everybody_may_read_is_refused_in_a_volume_too() {
    if !may_change_root() {
        return;
    }
    let bastion = Bastion::start();
    let image = pod("service", &BTreeMap::new());
    fs::remove_dir_all(image.path("/run/secrets/tunnelkeeper")).unwrap();
    image.mount("/run/secrets/tunnelkeeper", 0o444, &secret(&bastion));
    let daemon = Running::start(&image, &bastion);
    let failure = eventually("the login fails", || {
        let failure = daemon.0.bastion("prod")["last_failure"].take();
        (failure["reason"] == "identity_unreadable").then_some(failure)
    });
    assert!(failure.to_string().contains("can be read by others"), "{failure}");
}
