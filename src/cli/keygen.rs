//! `keygen`: makes a bastion's key and prints what the bastion needs to accept it, and nothing more than that.

use std::fs;
use std::io::{self, Write};

use super::Stop;
use crate::failure::plain;
use crate::settings::Settings;
use crate::settings::plan::{BastionPlan, IdentityPlan};
use crate::ssh;

pub(super) fn keygen(settings: &Settings, name: &str, force: bool, out: &mut impl Write) -> Result<(), Stop> {
    let bastion = settings.plan.bastions.iter().find(|bastion| bastion.name.as_str() == name);
    let Some(bastion) = bastion else {
        let known: Vec<&str> = settings.plan.bastions.iter().map(|bastion| bastion.name.as_str()).collect();
        return Err(Stop::Failed(format!("there is no bastion \"{name}\": known are {}", known.join(", "))));
    };
    let IdentityPlan::Own { path, .. } = &bastion.identity else {
        return Err(Stop::Failed(format!(
            "bastion \"{name}\" logs in with the keys that `identity` names: remove bastions.{name}.identity to let \
             it use a key of its own"
        )));
    };
    let cannot = |error: io::Error| {
        let text = plain(&error);
        Stop::Failed(format!("the key {} cannot be made: {text}: check daemon.state_dir", path.display()))
    };
    if force && path.exists() {
        fs::remove_file(path).map_err(cannot)?;
    }
    let made = match ssh::generate_key(path, &bastion.name) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(cannot(error)),
    };
    let identities =
        ssh::load_identities(bastion, None).map_err(|failure| Stop::Failed(failure.to_string()))?;
    let public_key = identities.own_public_key.unwrap_or_default();
    let what = if made { "made" } else { "already there; --force makes a new one:" };
    writeln!(out, "The key of bastion \"{name}\" ({what} {}):\n\n  {public_key}\n", path.display())?;
    explain(settings, bastion, &public_key, out)?;
    Ok(())
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
        "On {host}, make the account \"{user}\" if there is none, without a shell:\n\n  \
         sudo useradd --create-home --shell /usr/sbin/nologin {user}\n"
    )?;
    writeln!(
        out,
        "Append this line to ~{user}/.ssh/authorized_keys there (directory 0700, file 0600, both owned by {user}). \
         It lets the key connect to the databases behind this bastion, and do nothing else:\n\n  \
         {} {public_key}\n",
        restrictions(settings, bastion)
    )?;
    writeln!(
        out,
        "Its /etc/ssh/sshd_config must not forbid forwarding for this account; these lines keep dead sessions away:\n\n  \
         AllowTcpForwarding local\n  ClientAliveInterval 30\n  ClientAliveCountMax 10"
    )
}

/// The options before the key: nothing but forwards to the databases behind this bastion.
fn restrictions(settings: &Settings, bastion: &BastionPlan) -> String {
    let mut options =
        vec!["restrict".to_owned(), "port-forwarding".to_owned(), "command=\"/bin/false\"".to_owned()];
    let behind = settings.plan.databases.iter().filter(|database| database.bastion == bastion.name);
    let mut targets: Vec<String> = behind.map(|database| database.target.to_string()).collect();
    targets.sort();
    targets.dedup();
    options.extend(targets.iter().map(|target| format!("permitopen=\"{target}\"")));
    options.join(",")
}
