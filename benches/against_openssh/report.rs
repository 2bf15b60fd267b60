//! Figures: medians, spreads, ratios; as a table and as JSON.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::arguments::Plan;
use crate::peers::Peer;
use crate::support::account::find;

pub struct Report {
    peers: Vec<Peer>,
    facts: Vec<(&'static str, String)>,
    cases: Vec<Figures>,
}

/// What a case has found.
pub struct Figures {
    case: &'static str,
    rows: Vec<Row>,
}

/// One figure of all peers.
struct Row {
    name: &'static str,
    unit: &'static str,
    samples: Vec<(Peer, Vec<f64>)>,
}

/// One sample of a figure: its name, its unit, how much.
pub type Sample = (&'static str, &'static str, f64);

impl Figures {
    pub fn note(&mut self, peer: Peer, samples: &[Sample]) {
        let said: Vec<String> =
            samples.iter().map(|(name, unit, value)| format!("{name} {} {unit}", short(*value))).collect();
        eprintln!("  {:<18} {}", peer.title(), said.join(", "));
        for (name, unit, value) in samples {
            let row = self.row(name, unit);
            match row.samples.iter_mut().find(|(of, _)| *of == peer) {
                Some((_, values)) => values.push(*value),
                None => row.samples.push((peer, vec![*value])),
            }
        }
    }

    fn row(&mut self, name: &'static str, unit: &'static str) -> &mut Row {
        let found = self.rows.iter().position(|row| row.name == name);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row { name, unit, samples: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }
}

impl Row {
    fn median_of(&self, peer: Peer) -> Option<f64> {
        self.samples.iter().find(|(of, _)| *of == peer).map(|(_, values)| quantile(values, 0.5))
    }

    /// How the first peer compares with another one.
    fn ratio(&self, first: Peer, other: Peer) -> Option<f64> {
        let ratio = self.median_of(first)? / self.median_of(other)?;
        ratio.is_finite().then_some(ratio)
    }
}

/// Between the two values next to it, as most tools do.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

impl Report {
    pub fn new(plan: &Plan) -> Self {
        let mut peers = plan.peers.clone();
        // It takes part in the outage only, unless it is asked for.
        if !peers.contains(&Peer::Autossh) {
            peers.push(Peer::Autossh);
        }
        Self { peers, facts: facts(plan), cases: Vec::new() }
    }

    pub fn case(&mut self, case: &'static str) -> &mut Figures {
        self.cases.push(Figures { case, rows: Vec::new() });
        self.cases.last_mut().unwrap()
    }

    /// After each case, so that a run that is interrupted was not for nothing.
    pub fn save(&self, path: &Path) {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(path, format!("{:#}\n", self.json())).unwrap();
    }

    fn json(&self) -> Value {
        let facts = self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let figures =
            self.cases.iter().flat_map(|figures| figures.rows.iter().map(|row| (figures.case, row)));
        json!({
            "facts": Value::Object(facts),
            "figures": figures.map(|(case, row)| self.row_json(case, row)).collect::<Vec<_>>(),
        })
    }

    fn row_json(&self, case: &str, row: &Row) -> Value {
        let first = row.samples[0].0;
        let peers = row.samples.iter().map(|(peer, values)| {
            let value = json!({
                "median": quantile(values, 0.5), "min": quantile(values, 0.0), "max": quantile(values, 1.0),
                "quartiles": [quantile(values, 0.25), quantile(values, 0.75)], "runs": values,
                "ratio": row.ratio(first, *peer),
            });
            (peer.title().to_owned(), value)
        });
        json!({ "case": case, "figure": row.name, "unit": row.unit, "of": first.title(), "peers": Value::Object(peers.collect()) })
    }
}

/// A table that Markdown knows, with a line for each figure.
impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.facts {
            writeln!(f, "{name}: {value}")?;
        }
        let rows = || self.cases.iter().flat_map(|figures| &figures.rows);
        let took_part = |peer: &&Peer| rows().any(|row| row.median_of(**peer).is_some());
        let peers: Vec<Peer> = self.peers.iter().filter(took_part).copied().collect();
        let Some((first, others)) = peers.split_first() else { return Ok(()) };
        let mut lines = vec![heading(&peers, others)];
        for figures in &self.cases {
            lines.extend(figures.rows.iter().map(|row| cells(figures.case, row, &peers, *first, others)));
        }
        write_table(f, &lines)
    }
}

fn heading(peers: &[Peer], others: &[Peer]) -> Vec<String> {
    let mut heading = vec!["case".to_owned(), "figure".to_owned()];
    heading.extend(peers.iter().map(|peer| peer.title().to_owned()));
    heading.extend(others.iter().map(|peer| format!("ratio to {}", peer.title())));
    heading
}

fn cells(case: &str, row: &Row, peers: &[Peer], first: Peer, others: &[Peer]) -> Vec<String> {
    let mut cells = vec![case.to_owned(), format!("{}, {}", row.name, row.unit)];
    for peer in peers {
        let samples = row.samples.iter().find(|(of, _)| of == peer);
        cells.push(samples.map_or_else(|| "-".to_owned(), |(_, values)| spread(values)));
    }
    for other in others {
        cells.push(row.ratio(first, *other).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")));
    }
    cells
}

fn spread(values: &[f64]) -> String {
    let [low, median, high] = [0.0, 0.5, 1.0].map(|share| short(quantile(values, share)));
    if values.len() == 1 { median } else { format!("{median} ({low}-{high})") }
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        3
    };
    format!("{value:.digits$}")
}

fn write_table(f: &mut Formatter<'_>, lines: &[Vec<String>]) -> fmt::Result {
    let columns = lines[0].len();
    let widths: Vec<usize> =
        (0..columns).map(|column| lines.iter().map(|cells| cells[column].len()).max().unwrap()).collect();
    for (number, cells) in lines.iter().enumerate() {
        for (cell, width) in cells.iter().zip(&widths) {
            write!(f, "| {cell:<width$} ")?;
        }
        writeln!(f, "|")?;
        if number == 0 {
            for width in &widths {
                write!(f, "|{}", "-".repeat(width + 2))?;
            }
            writeln!(f, "|")?;
        }
    }
    Ok(())
}

/// What the figures depend on.
fn facts(plan: &Plan) -> Vec<(&'static str, String)> {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("cores", cores.to_string()),
        ("OpenSSH", version("ssh", "-V")),
        ("PostgreSQL", version("postgres", "--version")),
        ("autossh", version("autossh", "-V")),
        ("tunnelkeeper", said(Command::new(&plan.ours).arg("--version"))),
        ("runs", plan.runs.to_string()),
        ("bytes of a transfer", plan.size.to_string()),
    ]
}

fn version(program: &str, option: &str) -> String {
    said(Command::new(find(program)).arg(option))
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}
