//! docs/setup.md and the template say what zk-setup.toml takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory, Parser};
use zk_setup::{Arguments, SetupFile};

#[test]
fn the_reference_has_every_key_and_no_other() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/setup.md");
    let page = fs::read_to_string(page).unwrap();
    let mut tables = 0;
    for (heading, opening) in [
        ("### top", ""),
        ("### `[gateway]`", "[gateway]\n"),
        ("### `[aws]`", "[aws]\n"),
        ("### `[devices.NAME]`", "[devices.pi-01]\n"),
    ] {
        let section = page.split(&format!("\n{heading}\n")).nth(1).expect(heading);
        let rows = section.split("\n#").next().unwrap().lines();
        let documented: BTreeSet<_> = rows
            .filter_map(|row| row.strip_prefix("| `"))
            .filter_map(|row| row.split('`').next())
            .collect();
        // the parser says which keys there are
        let error = parse(&format!("{opening}no-such-key = 1\n")).unwrap_err();
        let (_, expected) = error.rsplit_once("expected ").expect(&error);
        let allowed: BTreeSet<_> = expected.split('`').skip(1).step_by(2).collect();
        assert_eq!(documented, allowed, "{heading}");
        tables += 1;
    }
    assert_eq!(tables, 4);
}

#[test]
fn the_template_is_taken_as_it_is_and_with_everything_that_it_shows() {
    let template = include_str!("../template.toml");
    let empty = parse(template).unwrap();
    assert!(empty.devices.is_empty() && empty.owners.is_empty());
    // what is shown begins with a small letter or [ and has no blank before it
    let shown: Vec<_> = template
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(shown) if shown.starts_with('[') || shown.contains(" = ") => shown,
            _ => line,
        })
        .collect();
    let full = parse(&shown.join("\n")).unwrap();
    assert_eq!(full.owners.len(), 1);
    assert_eq!(full.gateway.names.len(), 2);
    assert!(full.gateway.listen.is_some() && full.gateway.store.is_some());
    assert!(full.aws.region.is_some() && full.aws.prefix.is_some() && full.aws.arch.is_some());
    assert!(full.aws.lambda_zip.is_some() && full.aws.roots.is_some());
    let device = &full.devices[&"pi-01".parse().unwrap()];
    assert!(device.csr.is_some() && device.hsm.is_some() && device.endpoint.is_some());
}

#[test]
fn examples_in_the_help_can_be_typed() {
    let mut seen = 0;
    let mut open = vec![Arguments::command()];
    while let Some(command) = open.pop() {
        open.extend(command.get_subcommands().cloned());
        for line in examples(&command) {
            let words = line.split_whitespace();
            let parsed = Arguments::try_parse_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen > 25, "{seen}");
}

/// The command's own lines, without what is said of them and what the shell does.
fn examples(command: &Command) -> Vec<String> {
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    help.lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with("zk-setup "))
        .map(|line| {
            let line = line.split("  ").next().unwrap();
            let line = line.split(" | ").next().unwrap();
            line.split(" > ")
                .next()
                .unwrap()
                .trim_end_matches(" |")
                .to_owned()
        })
        .collect()
}

#[test]
fn mistakes_name_file_line_and_what_is_allowed() {
    for (text, says) in [
        (
            "[gateway]\n\nnmaes = []\n",
            &["line 3", "nmaes", "`names`"][..],
        ),
        ("gateway = 1\n", &["line 1"]),
        (
            "[gateway]\nlisten = \"localhost\"\n",
            &["line 2", "0.0.0.0:8443"],
        ),
        (
            "[gateway]\nnames = [\"no host\"]\n",
            &["line 2", "not a host name"],
        ),
        (
            "[gateway]\nstore = \"elsewhere\"\n",
            &["line 2", "file:PATH"],
        ),
        ("[aws]\narch = \"mips\"\n", &["line 2", "arm64 or x86_64"]),
        ("[devices.\"a b\"]\n", &["line 1"]),
        (
            "[devices.pi-01]\nhsm = \"soft:key.pem\"\n",
            &["line 2", "absolute path"],
        ),
        ("[devices.pi-01]\nendpoint = \"https://x\"\n", &["line 2"]),
        (
            "[devices.pi-01]\n",
            &["[devices.pi-01] names no key", "csr"],
        ),
        ("[devices.pi-01]\nhsm = 1\n", &["line 2", "string"]),
    ] {
        let error = parse(text).unwrap_err();
        for part in ["zk-setup.toml"].iter().chain(says) {
            assert!(error.contains(part), "{text:?}: no {part:?} in {error}");
        }
    }
}

#[test]
fn relative_paths_begin_at_the_file() {
    let file = parse(
        "owners = [\"o.pem\", \"/abs/o.pem\"]\n[gateway]\nstore = \"file:s.db\"\n\
         [devices.pi-01]\ncsr = \"c.pem\"\n",
    )
    .unwrap();
    assert!(file.owners[0].is_absolute() && file.owners[0].ends_with("o.pem"));
    assert_eq!(file.owners[1], Path::new("/abs/o.pem"));
    let zk_store::StoreUri::File(store) = file.gateway.store.unwrap() else {
        panic!("a file")
    };
    assert!(store.is_absolute());
    let device = &file.devices[&"pi-01".parse().unwrap()];
    assert!(device.csr.as_ref().unwrap().is_absolute());
}

fn parse(text: &str) -> Result<SetupFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zk-setup.toml");
    fs::write(&path, text).unwrap();
    SetupFile::read(&path).map_err(|error| format!("{error:#}"))
}
