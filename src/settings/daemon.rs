//! Reads `[http]`, `[log]` and `[daemon]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use super::listen::ListenOrOff;
use super::plan::{DaemonPlan, HttpPlan, ListenAt, LogFormat, LogPlan};
use super::reader::{Report, Section};
use super::sources::ENVIRONMENT;
use super::values::{Bytes, LogFilter, Setting, Whole};
use super::{Effective, Problem};
use crate::local::LocalAddress;

const DEFAULT_HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9822);

pub(super) fn read_http(mut section: Section, report: &mut Report) -> HttpPlan {
    let ListenOrOff(listen) = section.get_or("listen", ListenOrOff(Some(DEFAULT_HTTP)), report);
    if let Some(address) = listen {
        report.listener(&section, "listen", ListenAt::Address(LocalAddress::Tcp(address)));
    }
    let allow_remote_status = section.get_or("allow_remote_status", false, report);
    section.finish(report);
    HttpPlan { listen, allow_remote_status }
}

pub(super) fn read_log(mut section: Section, report: &mut Report) -> LogPlan {
    let format = section.get_or("format", LogFormat::Auto, report);
    let level = section.get_or("level", LogFilter::default(), report);
    section.finish(report);
    LogPlan { format, level: read_rust_log(report).unwrap_or(level) }
}

/// The variable by which a filter is usually set wins over the key.
fn read_rust_log(report: &mut Report) -> Option<LogFilter> {
    let text = report.rust_log.take()?;
    match text.to_str().ok_or_else(|| "is not text: write it in UTF-8".to_owned()).and_then(LogFilter::parse)
    {
        Ok(filter) => {
            let key = "log.level".to_owned();
            report.effective.retain(|effective| effective.key != key);
            let source = format!("{ENVIRONMENT} (RUST_LOG)");
            report.effective.push(Effective { key, value: filter.show(), source });
            Some(filter)
        }
        Err(text) => {
            let (source, key) = (ENVIRONMENT.to_owned(), "RUST_LOG".to_owned());
            report.problems.push(Problem { source, key, text });
            None
        }
    }
}

pub(super) fn read_daemon(mut section: Section, report: &mut Report) -> DaemonPlan {
    let default_dir =
        report.state_directory.clone().unwrap_or_else(|| PathBuf::from("/var/lib/tunnelkeeper"));
    let cores = available_parallelism().map_or(1, |cores| i64::try_from(cores.get()).unwrap_or(1));
    let mut state_dir = section.get_or("state_dir", default_dir, report);
    if let Some(in_use) = report.state_dir_in_use.take().filter(|in_use| *in_use != state_dir) {
        let text = format!("needs a restart to change: the daemon goes on with {}", in_use.display());
        report.note(&section, "state_dir", text);
        state_dir = in_use;
    }
    let generate_keys = section.get_or("generate_keys", true, report);
    let drain_timeout = section.get_or("drain_timeout", Duration::from_secs(30), report);
    let threads: Whole<1, 256> = section.get_or("threads", Whole(cores.clamp(1, 256)), report);
    let Bytes(buffer_memory) = section.get_or("buffer_memory", Bytes(256 << 20), report);
    if buffer_memory < 1 << 20 {
        report.problem(
            &section,
            "buffer_memory",
            "is too little to forward anything: write at least \"1MiB\"",
        );
    }
    section.finish(report);
    DaemonPlan { state_dir, generate_keys, drain_timeout, threads: threads.size(), buffer_memory }
}
