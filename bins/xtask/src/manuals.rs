//! Man pages and shell completions, of the programs' own command lines.

use std::fs;
use std::path::Path;

use anyhow::Result;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// Writes them below `out`: `man/PAGE.SECTION`, `bash/PROGRAM`, `zsh/_PROGRAM` and
/// `fish/PROGRAM.fish`.
pub(crate) fn write(out: &Path) -> Result<()> {
    for directory in ["man", "bash", "zsh", "fish"] {
        fs::create_dir_all(out.join(directory))?;
    }
    for (mut command, section) in [
        (zk_agent::arguments::Arguments::command(), "8"),
        (zk_ctl::Arguments::command(), "1"),
        (zk_gateway::arguments::Arguments::command(), "8"),
        (zk_reader::arguments::Arguments::command(), "1"),
        (zk_setup::Arguments::command(), "1"),
    ] {
        let name = command.get_name().to_owned();
        for (shell, file) in [
            (Shell::Bash, format!("bash/{name}")),
            (Shell::Zsh, format!("zsh/_{name}")),
            (Shell::Fish, format!("fish/{name}.fish")),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut script);
            fs::write(out.join(file), script)?;
        }
        command.build();
        pages(&command, &name, section, out)?;
    }
    Ok(())
}

/// A page for `command`, and one for each of its own: `zk-ctl-spool.1`.
fn pages(command: &Command, name: &str, section: &str, out: &Path) -> Result<()> {
    let mut page = Vec::new();
    // What stands there are lines, such as examples, and the page would fill them up.
    let notes = command.get_after_long_help().or(command.get_after_help());
    let notes = notes.map(ToString::to_string);
    let shown = command.clone().display_name(name.to_owned());
    let shown = shown.after_help(None::<&str>).after_long_help(None::<&str>);
    Man::new(shown).section(section).render(&mut page)?;
    if let Some(notes) = notes {
        let mut lines = Roff::new();
        lines.control("SH", ["NOTES"]).control("nf", []);
        for line in notes.lines() {
            lines.text([roman(line)]);
        }
        lines.control("fi", []).to_writer(&mut page)?;
    }
    fs::write(out.join(format!("man/{name}.{section}")), page)?;
    let own = |command: &&Command| command.get_name() != "help" && !command.is_hide_set();
    for command in command.get_subcommands().filter(own) {
        pages(
            command,
            &format!("{name}-{}", command.get_name()),
            section,
            out,
        )?;
    }
    Ok(())
}
