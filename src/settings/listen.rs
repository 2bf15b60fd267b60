//! Reads where a database's clients connect: addresses, Unix sockets, and listeners that systemd hands over.

use std::net::SocketAddr;

use config::ValueKind;
use serde_json::{Value as Json, json};

use super::plan::{ListenAt, ListenPlan};
use super::reader::{Given, Report, Section};
use super::values::{Setting, kind_of, text};
use crate::ids::{POSTGRES_SOCKET, check_socket_path};
use crate::local::LocalAddress;

/// The longest name that systemd gives a socket, in bytes (systemd.socket(5), `FileDescriptorName`).
const MAX_SYSTEMD_NAME: usize = 255;

pub(super) fn read(section: &mut Section, report: &mut Report) -> Option<ListenPlan> {
    let at: Option<Vec<ListenAt>> = section.require("listen", report);
    let SocketMode(socket_mode) = section.get_or("socket_mode", SocketMode(0o660), report);
    let socket_group: Option<String> = section.get("socket_group", report);
    let allow_remote_clients = section.get_or("allow_remote_clients", false, report);
    let at = at?;
    for at in &at {
        report.listener(section, "listen", at.clone());
        look_at(at, allow_remote_clients, section, report);
    }
    let has_unix = at.iter().any(|at| matches!(at, ListenAt::Address(LocalAddress::Unix(_))));
    for key in ["socket_mode", "socket_group"].into_iter().filter(|key| !has_unix && section.has(key)) {
        let text = "is of no use here: only listeners written as \"unix:/path\" are made with it";
        report.note(section, key, text);
    }
    Some(ListenPlan { at, socket_mode, socket_group, allow_remote_clients })
}

fn look_at(at: &ListenAt, allow_remote_clients: bool, section: &Section, report: &mut Report) {
    match at {
        ListenAt::Address(address) if !address.is_local() && !allow_remote_clients => {
            let text = format!(
                "{address} can be reached from other machines: listen on 127.0.0.1, or write allow_remote_clients = true"
            );
            report.problem(section, "listen", text);
        }
        ListenAt::Address(LocalAddress::Unix(path)) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with(POSTGRES_SOCKET) {
                let text = format!(
                    "psql and all that is built on libpq find a socket only under the name {POSTGRES_SOCKET}PORT, such as \
                     {POSTGRES_SOCKET}5432"
                );
                report.note(section, "listen", text);
            }
        }
        ListenAt::Address(_) | ListenAt::Systemd(_) => {}
    }
}

impl Setting for ListenAt {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "ADDRESS:PORT, unix:/path or systemd:NAME")?;
        if let Some(path) = text.strip_prefix("unix:") {
            let path = given.path(path)?;
            // A path that is not Unicode has come from the name of the file that names it.
            check_socket_path(&path.to_string_lossy())?;
            return Ok(Self::Address(LocalAddress::Unix(path)));
        }
        match text.strip_prefix("systemd:") {
            Some(name) => systemd_name(name).map(Self::Systemd),
            None => SocketAddr::read(given).map(|address| Self::Address(LocalAddress::Tcp(address))),
        }
    }
    fn show(&self) -> Json {
        json!(self.to_string())
    }
}

fn systemd_name(name: &str) -> Result<String, String> {
    let well_formed = (1..=MAX_SYSTEMD_NAME).contains(&name.len())
        && name.chars().all(|c| (c.is_ascii_graphic() || c == ' ') && c != ':');
    if well_formed {
        return Ok(name.to_owned());
    }
    Err(format!(
        "\"{}\" is not the name of a socket: write the FileDescriptorName of its socket unit, as in \
         \"systemd:analytics\"",
        name.escape_debug()
    ))
}

/// An address to listen on.
impl Setting for SocketAddr {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        let text = text(given, "ADDRESS:PORT")?;
        if let Ok(address) = text.parse::<Self>() {
            return match address.ip().to_canonical() {
                ip if ip == address.ip() => Ok(address),
                ip => Err(format!(
                    "\"{text}\" is an IPv4 address written as IPv6: write \"{ip}:{}\"",
                    address.port()
                )),
            };
        }
        match text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok()) {
            Some(port) => Err(format!(
                "\"{text}\" names a host: write the address, \"127.0.0.1:{port}\" or \"[::1]:{port}\""
            )),
            None if text.starts_with('/') => {
                Err(format!("\"{text}\" is a path: write \"unix:{text}\" to listen on a Unix socket"))
            }
            None => Err(format!(
                "\"{}\" is not an address to listen on: write ADDRESS:PORT, such as \"127.0.0.1:15432\"",
                text.escape_debug()
            )),
        }
    }
    fn show(&self) -> Json {
        json!(self.to_string())
    }
}

/// An address to listen on, or `"off"`.
#[derive(Clone, Copy)]
pub(super) struct ListenOrOff(pub(super) Option<SocketAddr>);

impl Setting for ListenOrOff {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        if matches!(&given.value.kind, ValueKind::String(text) if text == "off") {
            return Ok(Self(None));
        }
        SocketAddr::read(given).map(|address| Self(Some(address)))
    }
    fn show(&self) -> Json {
        self.0.map_or(json!("off"), |address| json!(address.to_string()))
    }
}

/// Who may read and write, as chmod(1) writes it.
#[derive(Clone, Copy)]
struct SocketMode(u32);

impl Setting for SocketMode {
    fn read(given: &Given<'_>) -> Result<Self, String> {
        // As a number it would have to be one to the base of eight, which TOML has and hardly anybody writes.
        let ValueKind::String(text) = &given.value.kind else {
            return Err(format!(
                "is {}: write a mode in quotes, such as \"0660\"",
                kind_of(&given.value.kind)
            ));
        };
        let is_octal = text.len() >= 3 && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        match mode {
            Some(mode) if mode & 0o222 == 0 => {
                Err(format!("\"{text}\" lets nobody connect, which takes the right to write: write \"0660\""))
            }
            Some(mode) => Ok(Self(mode)),
            None => Err(format!("\"{}\" is not a mode: write for example \"0660\"", text.escape_debug())),
        }
    }
    fn show(&self) -> Json {
        json!(format!("{:04o}", self.0))
    }
}

#[cfg(test)]
mod tests;
