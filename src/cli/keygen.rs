//! `keygen`: makes a bastion's key and prints what the bastion needs to accept it, and nothing more than that.

use std::io::{self, Write};
use std::path::Path;

use super::{Stop, block_on};
use crate::credentials;
use crate::failure::{Cause, plain};
use crate::files::{Existing, Placed};
use crate::ids::Target;
use crate::settings::Settings;
use crate::settings::plan::{BastionPlan, IdentityPlan};
use crate::ssh::{self, NextKey};

pub(super) fn keygen(settings: &Settings, name: &str, force: bool, out: &mut impl Write) -> Result<(), Stop> {
    let (bastion, path) = own_key(settings, name)?;
    let placed = make(path, bastion, force)?;
    let public_key = public_key(bastion)?;
    // Nobody needs the file who reads what is printed.
    let _ = ssh::restore_public_key(path, &public_key);
    writeln!(out, "The key of bastion \"{name}\" ({}):\n\n  {public_key}\n", what(path, placed))?;
    explain(settings, bastion, &public_key, out)?;
    Ok(())
}

/// Makes the key after the present one, or shows it again.
pub(super) fn next(settings: &Settings, name: &str, force: bool, out: &mut impl Write) -> Result<(), Stop> {
    let (bastion, path) = own_key(settings, name)?;
    if !path.exists() {
        let text =
            format!("bastion \"{name}\" has no key yet to be replaced: run `tunnelkeeper keygen {name}`");
        return Err(Stop::Failed(text));
    }
    let next = ssh::next_key_path(path);
    let placed = make(&next, bastion, force)?;
    let found = ssh::find_next_key(path).map_err(Stop::Failed)?;
    // The daemon may have been quick.
    let Some(NextKey { public_key, .. }) = found else {
        return Err(Stop::Failed(format!("the next key {} has been taken over just now", next.display())));
    };
    let _ = ssh::restore_public_key(&next, &public_key);
    let (user, host, targets) = (&bastion.user, &bastion.at.host, targets(settings, bastion));
    writeln!(out, "The next key of bastion \"{name}\" ({}):\n\n  {public_key}\n", what(&next, placed))?;
    writeln!(
        out,
        "Append this line to ~{user}/.ssh/authorized_keys on {host}, and leave the line of the present key there:\n\n  {} \
         {public_key}\n",
        restrictions(&targets)
    )?;
    writeln!(
        out,
        "The running daemon asks the bastion about it every few minutes, and at once when it is reloaded. Once the bastion \
         accepts it, it takes the place of {}, and what was there is kept as {}; no session ends for it. Then \
         `tunnelkeeper status {name}` shows no next key any more, and the line of the key before can go.",
        path.display(),
        ssh::old_key_path(path).display()
    )?;
    Ok(())
}

/// A bastion with a key of the daemon's own, and where that is.
fn own_key<'a>(settings: &'a Settings, name: &str) -> Result<(&'a BastionPlan, &'a Path), Stop> {
    let bastion = super::bastion(settings, name)?;
    let IdentityPlan::Own { path, .. } = &bastion.identity else {
        let (whose, key) = match &bastion.identity {
            IdentityPlan::Agent => ("of an agent", "agent"),
            _ => ("that `identity` names", "identity"),
        };
        return Err(Stop::Failed(format!(
            "bastion \"{name}\" logs in with the keys {whose}: remove bastions.{name}.{key} to let it use a key of its own"
        )));
    };
    Ok((bastion, path))
}

fn make(path: &Path, bastion: &BastionPlan, force: bool) -> Result<Placed, Stop> {
    let existing = if force { Existing::Replace } else { Existing::Keep };
    ssh::generate_key(path, &bastion.name, existing).map_err(|error| {
        let text = plain(&error);
        Stop::Failed(format!("the key {} cannot be made: {text}: check daemon.state_dir", path.display()))
    })
}

fn what(path: &Path, placed: Placed) -> String {
    match placed {
        Placed::Made => format!("made: {}", path.display()),
        Placed::Kept => format!("already there: {}; --force makes a new one", path.display()),
    }
}

fn public_key(bastion: &BastionPlan) -> Result<String, Stop> {
    let identities = match (ssh::load_identities(bastion, None, None), &bastion.passphrase) {
        (Err(failure), Some(source)) if failure.cause == Cause::AuthPassphrase => {
            let passphrase = block_on(credentials::fetch(source))?.map_err(|text| {
                Stop::Failed(format!("`identity_passphrase` of bastion \"{}\": {text}", bastion.name))
            })?;
            ssh::load_identities(bastion, Some(&passphrase), None)
        }
        (loaded, _) => loaded,
    };
    let identities = identities.map_err(|failure| Stop::Failed(format!("{failure}: {}", failure.hint())))?;
    identities.own_public_key.ok_or_else(|| Stop::Failed("the key has no public line".to_owned()))
}

fn explain(
    settings: &Settings,
    bastion: &BastionPlan,
    public_key: &str,
    out: &mut impl Write,
) -> io::Result<()> {
    let (user, host) = (&bastion.user, &bastion.at.host);
    writeln!(
        out,
        "On {host}, make the account \"{user}\" if there is none, without a shell, and a place for its keys:\n\n  \
         sudo useradd --create-home --shell /usr/sbin/nologin {user}\n  \
         sudo install -d -m 700 -o {user} -g {user} ~{user}/.ssh\n  \
         sudo touch ~{user}/.ssh/authorized_keys\n  \
         sudo chown {user}: ~{user}/.ssh/authorized_keys\n  \
         sudo chmod 600 ~{user}/.ssh/authorized_keys\n"
    )?;
    let targets = targets(settings, bastion);
    let meaning = match targets.as_slice() {
        [] => format!(
            "Nothing is behind this bastion yet, so it lets the key do nothing: run `tunnelkeeper keygen {}` again \
             when something is",
            bastion.name
        ),
        _ => "It lets the key connect to what is behind this bastion, and do nothing else".to_owned(),
    };
    writeln!(
        out,
        "Append this line to ~{user}/.ssh/authorized_keys there. {meaning}:\n\n  {} {public_key}\n",
        restrictions(&targets)
    )?;
    writeln!(
        out,
        "Write these lines to /etc/ssh/sshd_config.d/tunnelkeeper.conf there, and reload sshd. They hold the account to \
         the same whatever its keys say, and end sessions whose other end has gone:\n"
    )?;
    for line in sshd_lines(user, &targets) {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

/// What the account may do, for `sshd_config`.
fn sshd_lines(user: &str, targets: &[String]) -> Vec<String> {
    let sockets = targets.iter().any(|target| target.starts_with("[/"));
    let permitted = if targets.is_empty() { "none".to_owned() } else { targets.join(" ") };
    vec![
        format!("Match User {user}"),
        // Without it sshd allows no Unix socket either.
        "    AllowTcpForwarding local".to_owned(),
        format!("    AllowStreamLocalForwarding {}", if sockets { "local" } else { "no" }),
        format!("    PermitOpen {permitted}"),
        "    AllowAgentForwarding no".to_owned(),
        "    X11Forwarding no".to_owned(),
        "    PermitTTY no".to_owned(),
        "    ClientAliveInterval 30".to_owned(),
        "    ClientAliveCountMax 10".to_owned(),
    ]
}

/// A target as sshd's `permitopen` and `PermitOpen` name it. They are documented for TCP only; a Unix socket is held
/// against them as a host of that name at any port (OpenSSH, channels.c, `channel_connect_to_path`).
fn permitted(target: &Target) -> String {
    match target {
        Target::Tcp(at) => at.to_string(),
        Target::Unix(path) => format!("[{path}]:*"),
    }
}

/// The databases behind a bastion and the bastions that are reached through it, each once.
fn targets(settings: &Settings, bastion: &BastionPlan) -> Vec<String> {
    let behind = settings.plan.databases.iter().filter(|database| database.bastions.contains(&bastion.name));
    let mut targets: Vec<String> = behind.map(|database| permitted(&database.target)).collect();
    let through = settings.plan.bastions.iter().filter(|other| other.jump.as_ref() == Some(&bastion.name));
    targets.extend(through.map(|other| other.at.to_string()));
    targets.sort();
    targets.dedup();
    targets
}

/// The options before the key: nothing but forwards to these. `port-forwarding` without any would allow all.
fn restrictions(targets: &[String]) -> String {
    let permitted = targets.iter().map(|target| format!(",permitopen=\"{target}\""));
    let forwarding = if targets.is_empty() { "" } else { ",port-forwarding" };
    format!("restrict{forwarding},command=\"/bin/false\"{}", permitted.collect::<String>())
}
