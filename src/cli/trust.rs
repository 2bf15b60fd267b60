//! `trust`: shows the host keys of a bastion, and stores those that somebody confirms.

use std::io::{self, BufRead, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

use super::{Stop, block_on};
use crate::failure::{Cause, Failure};
use crate::host_keys::{Fingerprint, HostKey, KnownHosts, Renewal, Standing, line};
use crate::ids::HostPort;
use crate::session::trust::{fetch, read_files, store};
use crate::settings::Settings;
use crate::settings::plan::{BastionPlan, KnownHostsPlan, TrustPlan};

/// `terminal` is where a person answers, if there is one, and `home` the home directory of whoever runs this.
pub(super) fn trust(
    settings: &Settings,
    name: &str,
    fingerprints: &[Fingerprint],
    terminal: Option<&mut impl BufRead>,
    home: Option<&Path>,
    out: &mut impl Write,
) -> Result<(), Stop> {
    let bastion = super::bastion(settings, name)?;
    let jumps = settings.plan.jumps(bastion);
    let keys = block_on(fetch(bastion, &jumps))?.map_err(failed)?;
    let known_hosts = match &bastion.trust {
        TrustPlan::Pins(pins) => return compare_with_pins(bastion, &keys, pins, out),
        TrustPlan::Files(known_hosts) => &as_daemon(known_hosts, home),
    };
    let known = read_files(known_hosts).map_err(failed)?;
    show(bastion, &keys, &known, out)?;
    let is_complete = known.not_shown(&bastion.at, &keys).is_empty();
    let chosen = choose(bastion, keys, fingerprints)?;
    refuse_changed(&bastion.at, &chosen, &known)?;
    let new: Vec<HostKey> = chosen.into_iter().filter(|key| is_new(&bastion.at, key, &known)).collect();
    if new.is_empty() {
        writeln!(out, "\nThere is nothing to store.")?;
        return Ok(());
    }
    let file = own_file(bastion, known_hosts, &new)?;
    explain(&bastion.at, &new, file, out)?;
    let confirmed = match terminal {
        _ if !fingerprints.is_empty() => new,
        Some(terminal) => {
            out.flush()?;
            ask(new, is_complete, terminal, &mut io::stderr())?
        }
        None => {
            return Err(Stop::Failed(format!(
                "nobody is there to confirm it: run it on a terminal, or compare, and run `tunnelkeeper trust {name} \
                 --fingerprint SHA256:...`"
            )));
        }
    };
    keep(bastion, known_hosts, &confirmed)?;
    let stored: Vec<String> = confirmed.iter().map(ToString::to_string).collect();
    writeln!(out, "\nStored in {}: the {}", file.display(), stored.join(", the "))?;
    Ok(())
}

/// The files that the daemon reads. It has another home than who runs this, where its state directory is another user's.
pub(super) fn as_daemon(known_hosts: &KnownHostsPlan, home: Option<&Path>) -> KnownHostsPlan {
    let mut known_hosts = known_hosts.clone();
    let own = known_hosts.own.clone();
    let directory =
        own.iter().flat_map(|own| own.ancestors().skip(1)).find_map(|above| above.metadata().ok());
    if let Some(home) = home
        && directory.is_some_and(|directory| directory.uid() != geteuid().as_raw())
    {
        known_hosts.files.retain(|file| own.as_ref() == Some(file) || !file.starts_with(home));
    }
    known_hosts
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(failure: Failure) -> Stop {
    Stop::Failed(format!("{failure}: {}", failure.hint()))
}

fn compare_with_pins(
    bastion: &BastionPlan,
    keys: &[HostKey],
    pins: &[Fingerprint],
    out: &mut impl Write,
) -> Result<(), Stop> {
    let is_pinned = |key: &HostKey| pins.contains(&key.fingerprint());
    table(
        bastion,
        keys,
        |key| if is_pinned(key) { "pinned".to_owned() } else { "not pinned".to_owned() },
        out,
    )?;
    let name = &bastion.name;
    if keys.iter().any(is_pinned) {
        writeln!(out, "\nbastions.{name}.host_key pins keys, so none is stored.")?;
        return Ok(());
    }
    Err(Stop::Failed(format!(
        "none of these is pinned: if the bastion was rebuilt, write its fingerprint as bastions.{name}.host_key; if not, \
         somebody may be in between"
    )))
}

fn show(bastion: &BastionPlan, keys: &[HostKey], known: &KnownHosts, out: &mut impl Write) -> io::Result<()> {
    let standing = |key: &HostKey| match known.standing(&bastion.at, key) {
        Standing::Known(entry) => format!("known: {}", entry.place()),
        Standing::Revoked(entry) => format!("revoked: {}", entry.place()),
        Standing::Changed(entry) => {
            format!("changed: {} has {}", entry.place(), entry.key.fingerprint())
        }
        Standing::Unknown(_) => "not known".to_owned(),
    };
    table(bastion, keys, standing, out)?;
    let not_shown = known.not_shown(&bastion.at, keys);
    if !not_shown.is_empty() {
        writeln!(
            out,
            "\nWARNING: these keys are known of it, and were not shown. Unless it has lost them, or there are several bastions \
             behind the name, somebody may be in between:\n"
        )?;
        for entry in not_shown {
            writeln!(out, "  {}  {}  {}", entry.key.key_type, entry.key.fingerprint(), entry.place())?;
        }
    }
    if let Some(authority) = known.authorities(&bastion.at).next() {
        let place = authority.place();
        writeln!(out, "\n{place} has an authority for it: with its certificate, no key need be stored.")?;
    }
    Ok(())
}

fn table(
    bastion: &BastionPlan,
    keys: &[HostKey],
    standing: impl Fn(&HostKey) -> String,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "The host keys of bastion \"{}\" ({}):\n", bastion.name, bastion.at)?;
    let width = keys.iter().map(|key| key.key_type.len()).max().unwrap_or_default();
    for key in keys {
        writeln!(out, "  {:width$}  {}  {}", key.key_type, key.fingerprint(), standing(key))?;
    }
    Ok(())
}

/// The keys with the fingerprints that were given, else all. Each key comes over a connection of its own, so one that
/// is right says nothing of the others.
fn choose(
    bastion: &BastionPlan,
    mut keys: Vec<HostKey>,
    fingerprints: &[Fingerprint],
) -> Result<Vec<HostKey>, Stop> {
    let has = |fingerprint: &&Fingerprint| keys.iter().any(|key| key.fingerprint() == **fingerprint);
    if let Some(missing) = fingerprints.iter().find(|fingerprint| !has(fingerprint)) {
        return Err(Stop::Failed(format!(
            "no host key of bastion \"{}\" has the fingerprint {missing}, and nothing is stored: compare it with the \
             bastion's own; somebody may be in between",
            bastion.name
        )));
    }
    keys.retain(|key| fingerprints.is_empty() || fingerprints.contains(&key.fingerprint()));
    Ok(keys)
}

fn refuse_changed(at: &HostPort, keys: &[HostKey], known: &KnownHosts) -> Result<(), Stop> {
    for key in keys {
        match known.standing(at, key) {
            Standing::Changed(entry) => {
                return Err(Stop::Failed(format!(
                    "the {} of {at} has changed, and nothing is stored: if the bastion was rebuilt, remove {} and run \
                     this again; if not, somebody may be in between",
                    key.key_type,
                    entry.place()
                )));
            }
            Standing::Revoked(entry) => {
                return Err(Stop::Failed(format!(
                    "{} revokes the {key}, and nothing is stored: it must not be trusted until it has a new one",
                    entry.place()
                )));
            }
            Standing::Known(_) | Standing::Unknown(_) => {}
        }
    }
    Ok(())
}

fn is_new(at: &HostPort, key: &HostKey, known: &KnownHosts) -> bool {
    matches!(known.standing(at, key), Standing::Unknown(_))
}

/// The file to store in. A file that only others keep is not ours to write to.
fn own_file<'a>(
    bastion: &BastionPlan,
    known_hosts: &'a KnownHostsPlan,
    new: &[HostKey],
) -> Result<&'a Path, Stop> {
    let lines = || new.iter().map(|key| format!("\n  {}", line(&bastion.at, key))).collect::<String>();
    let files: Vec<String> = known_hosts.files.iter().map(|file| file.display().to_string()).collect();
    known_hosts.own.as_deref().ok_or_else(|| {
        Stop::Failed(format!(
            "bastions.{}.known_hosts does not name the file that keys are stored in, known_hosts in daemon.state_dir: \
             name it too, or compare, and append to {} what is right of this:\n{}",
            bastion.name,
            files.join(" or "),
            lines()
        ))
    })
}

fn explain(at: &HostPort, new: &[HostKey], file: &Path, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\nCompare with what the bastion says of itself, at its own console:\n\n  \
         for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf \"$key\"; done\n\n\
         To be stored in {}:\n",
        file.display()
    )?;
    for key in new {
        writeln!(out, "  {}", line(at, key))?;
    }
    Ok(())
}

/// Asks until there is an answer. Where the bastion does not show all that is known of it, a `yes` is not enough: only who
/// has compared can type a fingerprint.
fn ask(
    new: Vec<HostKey>,
    is_complete: bool,
    terminal: &mut impl BufRead,
    out: &mut impl Write,
) -> Result<Vec<HostKey>, Stop> {
    let (answers, again) = match is_complete {
        true => ("yes/no/[fingerprint]", "yes, no or the fingerprint of one of them"),
        false => ("no/[fingerprint]", "no or the fingerprint of one of them"),
    };
    write!(out, "\nIs this the bastion ({answers})? ")?;
    loop {
        out.flush()?;
        let mut answer = String::new();
        let read = terminal.read_line(&mut answer).unwrap_or_default();
        match answer.trim() {
            "yes" if is_complete => return Ok(new),
            "no" => return Err(Stop::Failed("nothing is stored".to_owned())),
            _ if read == 0 => return Err(Stop::Failed("nothing is stored".to_owned())),
            other => {
                let typed = Fingerprint::parse(other).ok();
                // The others have not been compared.
                if let Some(key) = new.iter().find(|key| Some(key.fingerprint()) == typed) {
                    return Ok(vec![key.clone()]);
                }
                write!(out, "Please type {again}: ")?;
            }
        }
    }
}

fn keep(bastion: &BastionPlan, known_hosts: &KnownHostsPlan, confirmed: &[HostKey]) -> Result<(), Stop> {
    let decide = |known: &KnownHosts| {
        // Whoever wrote to the files meanwhile may have known better.
        let changed = |key: &&HostKey| {
            matches!(known.standing(&bastion.at, key), Standing::Changed(_) | Standing::Revoked(_))
        };
        if let Some(key) = confirmed.iter().find(changed) {
            let text = format!("the known_hosts files have changed meanwhile, and refuse the {key}");
            return Err(Failure::new(Cause::HostKeyChanged, text));
        }
        let new = confirmed.iter().filter(|key| is_new(&bastion.at, key, known)).cloned().collect();
        Ok(Some(Renewal::adding(new)))
    };
    store(known_hosts, &bastion.at, decide).map_err(failed).map(drop)
}
