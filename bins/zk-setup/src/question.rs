//! What a person at the terminal is asked before something happens.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Context, bail, ensure};
use zk_provision::{Action, LocalSetup, Plan};

use crate::outcome;

/// Whether to carry out the plan. Where nobody can be asked, a plan that shuts
/// nobody out is carried out, unless it `costs`.
pub(crate) fn about(plan: &Plan, costs: Option<&str>) -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        if let Some(place) = costs {
            bail!(
                "this would change {place}, which may cost money, and there is no terminal to \
                 ask at: look at `zk-setup plan`, then give --yes"
            );
        }
        let names: Vec<_> = plan.revokes.iter().map(ToString::to_string).collect();
        ensure!(
            names.is_empty(),
            "this would remove {} and revoke the key for good, and there is no terminal to ask \
             at: look at `zk-setup plan`, then give --yes",
            names.join(", ")
        );
        return Ok(());
    }
    show(plan)?;
    let question = match costs {
        Some(place) => format!("Do that in {place}? [y/N] "),
        None => "Do that? [y/N] ".to_owned(),
    };
    let answer = ask(&question)?;
    if !matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes") {
        bail!("nothing was changed");
    }
    Ok(())
}

/// Whether to take a set-up away. The answer is the directory's name, so that it
/// is not given for another one.
pub(crate) fn about_destruction(
    setup: &LocalSetup,
    plan: &Plan,
    place: Option<&str>,
) -> anyhow::Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "there is no terminal to ask at: give --yes to destroy {}",
        setup.dir().display()
    );
    show(plan)?;
    let dir = std::path::absolute(setup.dir())?;
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
    let place = place
        .map(|place| format!(" in {place}"))
        .unwrap_or_default();
    let answer = ask(&format!(
        "This{place} can't be taken back. To go on, type the directory's name, {name}: "
    ))?;
    if answer != name {
        bail!("nothing was removed");
    }
    Ok(())
}

fn show(plan: &Plan) -> anyhow::Result<()> {
    let mut to = io::stderr().lock();
    for step in &plan.steps {
        if step.action != Action::Kept {
            writeln!(to, "{}", outcome::planned(step))?;
        }
    }
    for warning in outcome::warnings(plan) {
        writeln!(to, "{warning}")?;
    }
    Ok(())
}

fn ask(question: &str) -> anyhow::Result<String> {
    let mut to = io::stderr().lock();
    write!(to, "{question}").and_then(|()| to.flush())?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("no answer")?;
    Ok(answer.trim().to_owned())
}
