//! The configuration's template, and that file, flags, variables and document have the
//! same keys.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use zk_agent::Config;
use zk_agent::arguments::Arguments;

fn template() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_zk-agent"))
        .arg("--config-template")
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn parsed(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    fs::write(&file, text).unwrap();
    Config::read(&file).unwrap()
}

/// As serde has it, without paths of a temporary directory.
fn told(config: &Config) -> toml::Table {
    toml::Table::try_from(config).unwrap()
}

/// The template with each of its settings in force.
fn all(template: &str) -> String {
    let set = |line: &str| {
        let rest = line.strip_prefix("# ");
        let is_key = |rest: &str| {
            rest.split_once(" = ")
                .is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase()))
        };
        rest.filter(|rest| is_key(rest)).unwrap_or(line).to_owned() + "\n"
    };
    template.lines().map(set).collect()
}

#[test]
fn the_template_parses_to_what_holds_without_it() {
    let template = template();
    let given = told(&parsed(&template));
    // what is not commented out is what is required
    for line in template
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#'))
    {
        let without = template.replace(&format!("\n{line}\n"), "\n");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        fs::write(&file, without).unwrap();
        let error = Config::read(&file).unwrap_err().to_string();
        assert!(error.contains("missing field"), "{line}: {error}");
    }
    // and what is commented out changes nothing when it is not, but for what is off
    let mut set = told(&parsed(&all(&template)));
    for off in ["metrics", "socket"] {
        set[off] = given[off].clone();
    }
    set["events"].as_table_mut().unwrap().remove("battery");
    for (table, keys) in &mut set {
        let paths = ["certificate", "roots", "files"];
        for (key, value) in keys.as_table_mut().unwrap() {
            if !paths.contains(&key.as_str()) {
                assert_eq!(*value, given[table.as_str()][key.as_str()], "{table}.{key}");
            }
        }
    }
}

/// What the parser itself says that there is.
fn keys(of: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    fs::write(&file, of).unwrap();
    let error = Config::read(&file).unwrap_err().to_string();
    let (_, expected) = error.rsplit_once("expected ").expect(&error);
    expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn template_flags_variables_and_document_name_every_key() {
    let template = template();
    let set = all(&template);
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/agent.md");
    let document = fs::read_to_string(document).unwrap();
    let command = Arguments::command();
    let mut seen = 0;
    for table in keys(&format!("no-such-table = 1\n{template}")) {
        let heading = format!("[{table}]\n");
        assert!(set.contains(&heading), "the template lacks {heading}");
        let section = document.split(&format!("### `[{table}]`")).nth(1);
        let section = section.expect(&table).split("\n#").next().unwrap();
        for key in keys(&set.replace(&heading, &format!("{heading}no-such-key = 1\n"))) {
            let place = set.split(&heading).nth(1).unwrap();
            let place = place.split("\n[").next().unwrap();
            let name = format!("{table}.{key}");
            assert!(
                place.contains(&format!("\n{key} = ")),
                "the template lacks {name}"
            );
            let argument = command
                .get_arguments()
                .find(|argument| argument.get_id() == name.as_str())
                .unwrap_or_else(|| panic!("no flag for {name}"));
            let flag = format!("--{}", argument.get_long().unwrap());
            let variable = argument.get_env().unwrap().to_str().unwrap();
            let row = section
                .lines()
                .find(|line| line.starts_with(&format!("| `{key}` |")));
            let row = row.unwrap_or_else(|| panic!("docs/agent.md lacks {name}"));
            for word in [&flag, variable] {
                assert!(
                    row.contains(&format!("`{word}")),
                    "{name}: {word} is not in {row}"
                );
                assert!(
                    place.contains(word),
                    "{name}: {word} is not in the template"
                );
            }
            seen += 1;
        }
    }
    assert!(seen >= 18, "{seen}");
}
