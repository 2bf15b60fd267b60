//! `doctor`: has every way gone once, shows how far each stage has come, and says what is to be mended.

mod json;
mod text;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User, geteuid};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::configuration::missing_files;
use super::trust::as_daemon;
use super::{Format, Stop, block_on, refused};
use crate::doctor::{Progress, RunsAs, Selection, Verdict, examine, prepare};
use crate::ids::Name;
use crate::settings::plan::{Plan, ProbeWhen, TrustPlan};
use crate::settings::{Note, Settings, Surroundings};
use crate::signals::{End, first_end};
use text::Style;

/// How often it is shown that something still takes its time.
const TICK: Duration = Duration::from_secs(1);

/// Changes that come together are shown together: showing them takes time that would be taken for a stage's.
const PAUSE: Duration = Duration::from_millis(50);

/// Goes to the beginning of the line, and empties it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// A narrow terminal cuts what is written between them, so that it stays one line (DECAWM).
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";

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
    let notes = notes(&settings, &selection, &runs_as);
    let progress = prepare(&plan, &selection);
    let is_text = format == Format::Text;
    let style = Style::of(io::stdout().is_terminal(), surroundings);
    if is_text {
        text::print_configuration(&settings, &notes, style, out)?;
    }
    let mut shown = Shown { printed: 0, is_text, style, tells: io::stderr().is_terminal() };
    let end = first_end().map_err(|error| refused(&error))?;
    if let Err(end) = block_on(follow(&selection, &runs_as, &progress, &mut shown, end, out))?? {
        // The commands that were under way have been ended with what waited for them.
        end.obey();
        return Err(Stop::Told);
    }
    let checks = progress.checks();
    let verdict = Verdict::of(&checks);
    match format {
        Format::Json => json::print(&settings, &notes, &checks, &verdict, out)?,
        Format::Text => text::print_verdict(&verdict, style, out)?,
    }
    if verdict.passed { Ok(()) } else { Err(Stop::Told) }
}

/// Prints what is certain while the rest is still examined, unless `end` comes first.
async fn follow(
    selection: &Selection,
    runs_as: &RunsAs,
    progress: &Arc<Progress>,
    shown: &mut Shown,
    mut end: oneshot::Receiver<End>,
    out: &mut impl Write,
) -> io::Result<Result<(), End>> {
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
            Ok(end) = &mut end => {
                shown.clear()?;
                return Ok(Err(end));
            }
        };
        shown.update(progress, over, started.elapsed(), out)?;
        if over {
            return Ok(Ok(()));
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
        self.clear()?;
        if self.is_text {
            let lines = text::settled(&checks, self.style);
            for line in lines.iter().skip(self.printed) {
                writeln!(out, "{line}")?;
            }
            out.flush()?;
            self.printed = self.printed.max(lines.len());
        }
        if self.tells && !over {
            let mut err = io::stderr();
            write!(err, "{NO_WRAP}{}{WRAP}", text::under_way(&checks, for_so_long))?;
            err.flush()?;
        }
        Ok(())
    }

    /// Takes what is under way from the terminal.
    fn clear(&self) -> io::Result<()> {
        if !self.tells {
            return Ok(());
        }
        let mut err = io::stderr();
        write!(err, "{CLEAR_LINE}")?;
        err.flush()
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

fn notes(settings: &Settings, selection: &Selection, runs_as: &RunsAs) -> Vec<Note> {
    let asked: BTreeSet<&Name> = selection
        .ways
        .iter()
        .map(|way| &way.database)
        .filter(|database| database.probe.when == ProbeWhen::Active)
        .map(|database| &database.name)
        .collect();
    let wakes = asked.into_iter().map(|name| Note {
        key: format!("databases.{name}.probe.when"),
        text:
            "the daemon asks it only while clients are active; this asks it now, which wakes one that rests"
                .to_owned(),
    });
    let user = runs_as.note().map(|text| Note { key: "daemon.state_dir".to_owned(), text });
    settings.notes.iter().cloned().chain(missing_files(settings)).chain(wakes).chain(user).collect()
}
