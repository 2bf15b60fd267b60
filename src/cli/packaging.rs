//! `completions` and `man`: what a package installs beside the program, made from the command line's own description.

use std::io::{self, Write};

use clap::{Arg, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Stop;

pub(super) use clap_complete::Shell;

const NAME: &str = "tunnelkeeper";

const SUMMARY: &str = "keep SSH tunnels to database bastions open";

/// What the command line's description does not say.
const SECTIONS: [(&str, &[(&str, &str)]); 4] = [
    (
        "ENVIRONMENT",
        &[
            ("TUNNELKEEPER_CONFIG", "The configuration file, unless --config names one."),
            (
                "TUNNELKEEPER__SECTION__KEY",
                "A value of the configuration, such as TUNNELKEEPER__HTTP__LISTEN=off; it wins over files.",
            ),
            ("TUNNELKEEPER_URL", "Where the daemon answers, unless --url says it."),
            ("RUST_LOG", "The daemon's log filter; it wins over log.level."),
            ("STATE_DIRECTORY", "The default of daemon.state_dir, as set by systemd."),
            (
                "CREDENTIALS_DIRECTORY",
                "Where secrets of the kind { credential = \"NAME\" } are, as set by systemd.",
            ),
            ("PGSSLMODE, PGSSLROOTCERT", "What the caller of exec has set there is not weakened."),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/tunnelkeeper/tunnelkeeper.toml", "The configuration."),
            ("/etc/tunnelkeeper/conf.d/*.toml", "Laid over it in the order of their names."),
            ("/etc/tunnelkeeper/known_hosts", "Host keys of bastions that are trusted."),
            ("/var/lib/tunnelkeeper", "The state directory; keys/NAME is the key for bastion NAME."),
        ],
    ),
    (
        "EXIT STATUS",
        &[
            ("0", "Done; for run: stopped as asked."),
            ("1", "Failed; for wait: not reachable in time."),
            ("2", "Wrong usage."),
            ("78", "The configuration cannot be used."),
            (
                "125, 126, 127",
                "Of exec: it did not come to the command; the command cannot be run; it is not there.",
            ),
        ],
    ),
    ("SEE ALSO", &[("ssh(1), sshd(8), psql(1)", "")]),
];

pub(super) fn completions(shell: Shell, mut command: Command, out: &mut impl Write) -> Result<(), Stop> {
    // The generator does not survive an output that cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, NAME, &mut script);
    Ok(out.write_all(&script)?)
}

pub(super) fn man(command: Command, out: &mut impl Write) -> Result<(), Stop> {
    let mut page = Vec::new();
    render(command, &mut page)?;
    Ok(out.write_all(&page)?)
}

fn render(command: Command, page: &mut Vec<u8>) -> io::Result<()> {
    let description = command.get_about().cloned().unwrap_or_default();
    let command = command.about(SUMMARY).long_about(description).subcommand_value_name("COMMAND");
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let whole = Man::new(command.clone());
    // Without a date: it is the same page for the same version, whenever it was made.
    writeln!(page, r#".TH TUNNELKEEPER 1 "" "{NAME} {}" "User Commands""#, env!("CARGO_PKG_VERSION"))?;
    whole.render_name_section(page)?;
    // The generator's own leaves out what --config takes.
    let mut synopsis = Roff::new();
    synopsis.control("SH", ["SYNOPSIS"]);
    synopsis.text([bold(NAME), roman(" [--config FILE] COMMAND [ARGUMENT...]")]);
    synopsis.to_writer(page)?;
    whole.render_description_section(page)?;
    whole.render_options_section(page)?;
    let mut commands = Roff::new();
    commands.control("SH", ["COMMANDS"]);
    commands.to_writer(page)?;
    for subcommand in command.get_subcommands() {
        render_command(subcommand, page)?;
    }
    for (heading, entries) in SECTIONS {
        let mut section = Roff::new();
        section.control("SH", [heading]);
        for (term, text) in entries {
            if text.is_empty() {
                section.text([roman(*term)]);
            } else {
                section.control("TP", []).text([bold(*term)]).text([roman(*text)]);
            }
        }
        section.to_writer(page)?;
    }
    Ok(())
}

/// A command, or each of those that it is made of, under a heading of its own.
fn render_command(command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    if command.has_subcommands() {
        return command.get_subcommands().try_for_each(|part| render_command(part, page));
    }
    // Described once, for all.
    let for_all =
        |arg: Arg| if matches!(arg.get_id().as_str(), "config" | "help") { arg.hide(true) } else { arg };
    let command = command.clone().mut_args(for_all);
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim_start_matches(NAME).trim();
    let mut heading = Roff::new();
    heading.control("SS", [usage]);
    heading.to_writer(page)?;
    let parts = Man::new(command);
    let mut text = Vec::new();
    parts.render_description_section(&mut text)?;
    parts.render_options_section(&mut text)?;
    // They are parts of this section, and no sections.
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| !line.starts_with(".SH "));
    lines.into_iter().try_for_each(|line| writeln!(page, "{line}"))
}
