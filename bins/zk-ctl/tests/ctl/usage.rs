//! What a person is told who gets it wrong, and that help and document agree.

use std::fs;
use std::path::Path;

use crate::world::{World, ctl};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_are_told_with_what_is_right() {
    let world = World::new().await;
    let cases: &[(&[&str], &[&str])] = &[
        (&["publish", "--timeout", "soon"], &["--timeout", "30s"]),
        (&["publish", "--timeout=-3s"], &["--timeout", "30s"]),
        (
            &["publish", "--timeout", "3d"],
            &["--timeout", "up to a day"],
        ),
        (
            &["publish", "--content-type", ""],
            &["--content-type", "text/csv"],
        ),
        (
            &["publish", "--content-type", "text\n"],
            &["printable ASCII"],
        ),
        (
            &["publish", "--forge", "time"],
            &["signature", "device", "replay"],
        ),
        (
            &["publish", "--endpoint", "https://localhost"],
            &["scheme", "host:port"],
        ),
        (&["publish", "--endpoint", "localhost:0"], &["port"]),
        (&["doctor", "--endpoint", "a b"], &["--endpoint", "host"]),
        (&["doctor", "--timeout", "x"], &["--timeout", "30s"]),
        (
            &["doctor", "--hsm", "yubikey:1"],
            &["--hsm", "zymkey:slot=0"],
        ),
        (
            &["hsm", "info", "--hsm", "soft:key.pem"],
            &["absolute path"],
        ),
        (
            &["hsm", "csr", "--name", "pi/01"],
            &["--name", "A-Z a-z 0-9 _ -"],
        ),
        (&["hsm", "random", "0"], &["1..=65536"]),
        (&["hsm", "random", "many"], &["many"]),
        (&["hsm", "verify", "report"], &["--signature"]),
        (
            &["hsm", "verify", "--signature", "-"],
            &["standard input", "give a file"],
        ),
        (
            &[
                "hsm",
                "verify",
                "--signature",
                "roots.pem",
                "--public-key",
                "agent.toml",
            ],
            &["agent.toml", "no P-256 public key"],
        ),
        (&["hsm", "keys"], &["Usage"]),
        (&["hsm", "watch", "--interval", "1ms"], &["at least 10ms"]),
        (&["hsm", "watch", "--count", "0"], &["--count"]),
        (&["hsm", "watch", "--once", "--count", "3"], &["--once"]),
        (
            &["spool", "list", "--limit", "0"],
            &["--limit", "1..=10000"],
        ),
        (
            &["spool", "list", "--dir", "nowhere"],
            &["nowhere", "--dir"],
        ),
        (&["spool", "verify", "--dir", "nowhere"], &["nowhere"]),
        (&["spool", "rejected"], &["Usage"]),
        (&["spool", "rejected", "drop"], &["--all", "RECORD"]),
        (&["spool", "rejected", "retry", "17"], &["d75d6723/17"]),
        (&["spool", "rejected", "drop", "--all", "d7/17"], &["--all"]),
        (
            &["publish", "--config", "nowhere.toml"],
            &["nowhere.toml", "--config", "zk-setup"],
        ),
        (&["publish"], &["standard input: no data"]),
        (&["hsm", "sign", "-"], &["standard input: no data"]),
        (&["spool"], &["Usage"]),
        (&["what"], &["what"]),
    ];
    for (arguments, says) in cases {
        let run = world.ctl(arguments);
        assert_eq!(run.code, 2, "{arguments:?}: {}", run.err);
        for part in *says {
            assert!(
                run.err.contains(part),
                "{arguments:?}: no {part:?} in {}",
                run.err
            );
        }
        assert!(run.out.is_empty(), "{arguments:?}");
    }
    // a PIN that doesn't belong there is not said
    for wrong in [
        "?pin-value=8317402",
        ";pin-value=8317402",
        "?pin-source=8317402",
    ] {
        let uri = format!("pkcs11:token=t;object=o{wrong}");
        let run = world.ctl(&["hsm", "info", "--hsm", &uri]).ends(2);
        run.says(&["--hsm", "pin-source"]);
        assert!(!run.err.contains("8317402"), "{}", run.err);
    }
    // what is at fault here is not what was typed
    let missing = world.ctl(&["publish", "nothing-there"]).ends(1);
    missing.says(&["cannot read nothing-there", "No such file"]);
    let out = world
        .ctl(&["hsm", "csr", "--out", "no/such/dir.pem"])
        .ends(1);
    out.says(&["no/such/dir.pem"]);
    let nowhere = "zymkey:slot=0?module-path=/nowhere/lib.so";
    let hardware = world.ctl(&["hsm", "info", "--hsm", nowhere]).ends(1);
    hardware.says(&[nowhere, "/nowhere/lib.so can't be loaded", "No such file"]);
    assert!(world.stored().await.is_empty());
}

/// Paths in a configuration begin where it lies, wherever it was named from.
#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_in_the_current_directory_is_found() {
    let world = World::new().await;
    for config in ["agent.toml", "./agent.toml"] {
        let arguments = ["publish", "--config", config];
        ctl(&world.path("."), &arguments, b"x").ends(0);
    }
}

/// Flags go before the environment, that before the file.
#[tokio::test(flavor = "multi_thread")]
async fn settings_come_in_their_order() {
    let world = World::new().await;
    let (from_variable, from_flag) = (world.arg("variable.pem"), world.arg("flag.pem"));
    let run = |flag: Option<&str>, variable: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_zk-ctl"));
        command.args(["hsm", "info", "--json"]);
        command.env("ZK_CTL_CONFIG", world.path("agent.toml"));
        command.env_remove("ZK_CTL_HSM");
        if let Some(variable) = variable {
            command.env("ZK_CTL_HSM", format!("soft:{variable}"));
        }
        if let Some(flag) = flag {
            command.args(["--hsm", &format!("soft:{flag}")]);
        }
        crate::world::finish(&mut command, b"").ends(0).json()["uri"].clone()
    };
    for path in [&from_variable, &from_flag] {
        zk_hsm::create_soft_key(path).unwrap();
    }
    assert_eq!(run(None, None), format!("soft:{}", world.arg("key.pem")));
    assert_eq!(
        run(None, Some(&from_variable)),
        format!("soft:{from_variable}")
    );
    assert_eq!(
        run(Some(&from_flag), Some(&from_variable)),
        format!("soft:{from_flag}")
    );
}

#[test]
fn help_and_document_agree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(root.join("../../docs/ctl.md")).unwrap();
    let help = |arguments: &[&str]| {
        let run = ctl(root, &[arguments, &["--help"]].concat(), b"").ends(0);
        run.text().to_owned()
    };
    // each command and each flag of the help is in the document
    let commands = |help: &str| -> Vec<String> {
        let list = help.split("Commands:\n").nth(1).unwrap_or_default();
        list.lines()
            .take_while(|line| !line.is_empty())
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "help")
            .map(str::to_owned)
            .collect()
    };
    let mut seen = 0;
    let mut left = vec![Vec::<String>::new()];
    while let Some(path) = left.pop() {
        let text = help(&path.iter().map(String::as_str).collect::<Vec<_>>());
        let below = commands(&text);
        let has_more = !below.is_empty();
        left.extend(below.into_iter().map(|name| [&path[..], &[name]].concat()));
        // but for sensors, those with more below them do nothing themselves
        if has_more && path != ["sensors"] {
            continue;
        }
        let full = format!("`zk-ctl {}", path.join(" "));
        assert!(document.contains(&full), "docs/ctl.md lacks {full}");
        let flags = text
            .lines()
            .map(str::trim_start)
            .filter(|line| line.starts_with('-'))
            .flat_map(str::split_whitespace)
            .filter(|word| word.starts_with("--"));
        for flag in flags {
            if !["--help", "--version"].contains(&flag) {
                assert!(
                    document.contains(flag),
                    "docs/ctl.md lacks {flag} of {full}"
                );
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 22);

    // and the exit codes are the same ones
    let codes = help(&[]);
    let codes = codes
        .split("Exit codes:")
        .nth(1)
        .unwrap()
        .replace('\n', " ");
    let table = document.split("| exit code |").nth(1).unwrap();
    let table: Vec<_> = table
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|line| line.split_once(" | "))
        .filter(|(code, _)| code.len() == 1 && code.as_bytes()[0].is_ascii_digit())
        .collect();
    assert_eq!(table.len(), 7, "{table:?}");
    for (code, _) in table {
        assert!(codes.contains(&format!(" {code} ")), "{code}: {codes}");
    }
}

/// docs/hsm.md says of each error, and of each code of Zymbit's library, what
/// to do.
#[test]
fn the_document_has_every_error_of_a_key() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let document = read("docs/hsm.md");
    let between = |text: &str, begin: &str, end: &str| {
        let rest = text.split(begin).nth(1).unwrap();
        rest.split(end).next().unwrap().to_owned()
    };
    let errors = read("crates/zk-hsm/src/error.rs");
    let errors = between(&errors, "pub enum Error {", "\n}\n");
    let variants = errors
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.split([' ', '(', ',']).next().unwrap());
    let mut seen = 0;
    for variant in variants {
        let row = format!("`{variant}`");
        assert!(document.contains(&row), "docs/hsm.md lacks {row}");
        seen += 1;
    }
    assert!(seen > 25, "{seen}");

    let backend = read("crates/zk-hsm/src/backend/zymkey.rs");
    let codes = between(&backend, "const TRANSIENT", "];");
    let table = between(&document, "### Codes of Zymbit's library", "###");
    let codes = codes.split('"').skip(1).step_by(2);
    let mut seen = 0;
    for code in codes.filter(|code| code.starts_with('E')) {
        assert!(
            table.contains(&format!("-{code} ")),
            "docs/hsm.md lacks {code}"
        );
        seen += 1;
    }
    assert!(seen > 15, "{seen}");
}
