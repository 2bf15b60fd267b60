//! `doctor`: has every way gone once, shows how far each stage has come, and says what is to be mended.

mod json;
mod text;

use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User, geteuid};
use tokio::time::{sleep, timeout};

use super::configuration::missing_files;
use super::trust::as_daemon;
use super::{Format, Stop, runtime};
use crate::doctor::{Progress, RunsAs, Selection, Verdict, examine, prepare};
use crate::settings::plan::{Plan, TrustPlan};
use crate::settings::{Note, Settings, Surroundings};
use text::Style;

/// How often it is shown that something still takes its time.
const TICK: Duration = Duration::from_secs(1);

/// Changes that come together are shown together: showing them takes time that would be taken for a stage's.
const PAUSE: Duration = Duration::from_millis(50);

/// Goes to the beginning of the line, and empties it.
const CLEAR_LINE: &str = "\r\x1b[K";

pub(super) fn doctor(
    surroundings: &Surroundings,
    names: &[String],
    format: Format,
    out: &mut impl Write,
) -> Result<(), Stop> {
    match look(surroundings, names, format, out) {
        // Who has not read to the end has not seen that all is well.
        Err(Stop::Unread) => Err(Stop::Told),
        looked => looked,
    }
}

fn look(
    surroundings: &Surroundings,
    names: &[String],
    format: Format,
    out: &mut impl Write,
) -> Result<(), Stop> {
    let settings = match super::load(surroundings) {
        Ok(settings) => settings,
        Err(Stop::Configuration(problems)) => {
            if format == Format::Json {
                json::print_problems(&problems, out)?;
            }
            return Err(Stop::Configuration(problems));
        }
        Err(stop) => return Err(stop),
    };
    let home = surroundings.variables.get("HOME").map(Path::new);
    let plan = seen_by_daemon(&settings.plan, home);
    let selection = Selection::of(&plan, names).map_err(|unknown| no_such_name(&plan, &unknown))?;
    let runs_as = runs_as(&plan);
    let notes = notes(&settings, &runs_as);
    let progress = prepare(&plan, &selection);
    let is_text = format == Format::Text;
    let style = Style::of(io::stdout().is_terminal(), surroundings);
    if is_text {
        text::print_configuration(&settings, &notes, style, out)?;
    }
    let mut shown = Shown { printed: 0, is_text, style, tells: io::stderr().is_terminal() };
    runtime()?.block_on(follow(&selection, &runs_as, &progress, &mut shown, out))?;
    let checks = progress.checks();
    let verdict = Verdict::of(&checks);
    match format {
        Format::Json => json::print(&settings, &notes, &checks, &verdict, out)?,
        Format::Text => text::print_verdict(&verdict, style, out)?,
    }
    if verdict.passed { Ok(()) } else { Err(Stop::Told) }
}

/// Prints what is certain while the rest is still examined.
async fn follow(
    selection: &Selection,
    runs_as: &RunsAs,
    progress: &Arc<Progress>,
    shown: &mut Shown,
    out: &mut impl Write,
) -> io::Result<()> {
    let started = Instant::now();
    let mut examined = std::pin::pin!(examine(selection, runs_as, progress));
    shown.update(progress, false, started.elapsed(), out)?;
    loop {
        let change = async {
            let _ = timeout(TICK, progress.changed()).await;
            sleep(PAUSE).await;
        };
        let over = tokio::select! {
            () = &mut examined => true,
            () = change => false,
        };
        shown.update(progress, over, started.elapsed(), out)?;
        if over {
            return Ok(());
        }
    }
}

/// What a person has seen so far.
struct Shown {
    /// So many lines.
    printed: usize,
    is_text: bool,
    style: Style,
    /// There is somebody to be told what is under way.
    tells: bool,
}

impl Shown {
    /// The lines go where they are read, and what is under way only to a terminal, which need not be the same.
    fn update(
        &mut self,
        progress: &Progress,
        over: bool,
        for_so_long: Duration,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let checks = progress.checks();
        let mut err = io::stderr();
        if self.tells {
            write!(err, "{CLEAR_LINE}")?;
            err.flush()?;
        }
        if self.is_text {
            let lines = text::settled(&checks, self.style);
            for line in lines.iter().skip(self.printed) {
                writeln!(out, "{line}")?;
            }
            out.flush()?;
            self.printed = self.printed.max(lines.len());
        }
        if self.tells && !over {
            write!(err, "{}", text::under_way(&checks, for_so_long))?;
            err.flush()?;
        }
        Ok(())
    }
}

fn no_such_name(plan: &Plan, name: &str) -> Stop {
    let bastions = plan.bastions.iter().map(|bastion| bastion.name.as_str());
    let known: Vec<&str> =
        bastions.chain(plan.databases.iter().map(|database| database.name.as_str())).collect();
    let name = name.escape_debug();
    Stop::Failed(format!("there is no bastion or database \"{name}\": known are {}", known.join(", ")))
}

/// The configuration with the known_hosts files that the daemon reads.
fn seen_by_daemon(plan: &Plan, home: Option<&Path>) -> Plan {
    let mut plan = plan.clone();
    for bastion in &mut plan.bastions {
        if let TrustPlan::Files(known_hosts) = &mut Arc::make_mut(bastion).trust {
            *known_hosts = as_daemon(known_hosts, home);
        }
    }
    plan
}

fn runs_as(plan: &Plan) -> RunsAs {
    let name = |uid: Uid| match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    };
    let me = geteuid();
    let owner = plan.daemon.state_dir.metadata().ok().map(|directory| Uid::from_raw(directory.uid()));
    RunsAs { me: name(me), daemon: owner.filter(|owner| *owner != me).map(name) }
}

fn notes(settings: &Settings, runs_as: &RunsAs) -> Vec<Note> {
    let user = runs_as.note().map(|text| Note { key: "daemon.state_dir".to_owned(), text });
    settings.notes.iter().cloned().chain(missing_files(settings)).chain(user).collect()
}
