//! `credentials`: AWS keys that an HSM has locked.

mod keys;
mod plain;
mod sealed;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::{env, iter};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use zk_hsm::{BackendKind, HsmUri};

use crate::Outcome;
use keys::Keys;
use plain::Held;
use sealed::Sealed;
use zk_cli::{KeyUri, escaped};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum CredentialsCommand {
    /// Has an HSM lock AWS keys, and keeps what it made of them
    ///
    /// The keys come from --profile, from standard input in the JSON of
    /// `credential_process`, or, at a terminal, from whoever types them. They are
    /// unlocked again before anything is said to be done. Where the same keys
    /// still are in the clear is said, and at a terminal it is offered to take
    /// them out.
    ///
    /// Never seal an administrator's keys: whoever can run programs on this
    /// machine as you can use what is sealed. Nothing here can tell what keys may
    /// do; give them a user of their own with exactly the rights they need.
    #[command(after_help = SEAL_HELP)]
    Seal(Seal),

    /// Runs a command with the keys in its environment; without one, prints them
    /// for `credential_process`
    ///
    /// The command takes this program's place: its signals are its own, its exit
    /// status is the one there is, and nothing that holds the keys stays behind.
    /// AWS_PROFILE is taken from its environment, since some SDKs would prefer
    /// that. What is printed for `credential_process` isn't for people: a
    /// terminal doesn't get it.
    #[command(after_help = RUN_HELP)]
    Run(Run),

    /// Removes sealed keys, and says how to deactivate them in AWS
    ///
    /// Needs no HSM. The keys work until they are deactivated: a removed file can
    /// often be read from the card again, and a copy of it elsewhere, with the
    /// HSM, is as good as ever.
    Forget {
        /// Which ones
        name: Name,
    },
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Seal {
    /// What to call them: 1 to 64 of A-Z a-z 0-9 _ - [the profile's name, or
    /// default]. What has the name is replaced
    name: Option<Name>,

    /// The key whose HSM is to lock them: zymkey:slot=0, pkcs11:token=T;object=O
    /// or, for development, soft:/absolute/path.pem
    #[arg(long, value_name = "URI", value_parser = KeyUri)]
    hsm: HsmUri,

    /// Takes them from this profile of ~/.aws/credentials
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// Which keys
    #[arg(long, value_name = "NAME", default_value = DEFAULT)]
    credentials: Name,

    /// The command and its arguments, behind `--`
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What sealed keys are called; it makes a file name.
#[derive(Clone, Debug)]
pub(crate) struct Name(String);

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a name is 1 to 64 of A-Z a-z 0-9 _ -")
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Does what the command says, with what is sealed in `dir`.
pub(crate) fn run(dir: &Path, command: &CredentialsCommand) -> anyhow::Result<Outcome> {
    match command {
        CredentialsCommand::Seal(given) => seal(dir, given),
        CredentialsCommand::Run(given) => use_them(dir, given),
        CredentialsCommand::Forget { name } => forget(dir, name),
    }
}

fn seal(dir: &Path, given: &Seal) -> anyhow::Result<Outcome> {
    leave_no_core()?;
    let name = match (&given.name, &given.profile) {
        (Some(name), _) => name.clone(),
        (None, Some(profile)) => profile
            .parse()
            .map_err(|problem| anyhow::anyhow!("{problem}, and {profile:?} is none: name one"))?,
        (None, None) => Name(DEFAULT.to_owned()),
    };
    let path = file(dir, &name);
    let before = match fs::symlink_metadata(&path) {
        Ok(_) => {
            let before = Sealed::look_at(&path).context(
                "something else has the name of what is to be sealed: move it away, or choose \
                 another name",
            )?;
            Some(before.access_key_id)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let is_asked = io::stdin().is_terminal();
    let keys = match &given.profile {
        Some(profile) => plain::of_profile(profile)?,
        None if is_asked => plain::of_terminal()?,
        None => plain::of_standard_input()?,
    };
    keys.in_force(Timestamp::now())?;
    let sealed = Sealed::new(&keys, &given.hsm)?;
    make_dir(&path)?;
    sealed.write(&path, &keys)?;

    let mut held = plain::held(&keys);
    if is_asked {
        offer_to_remove(&mut held, &keys)?;
    }
    let replaced = before.filter(|before| *before != keys.access_key_id);
    Ok(told_of_seal(
        dir,
        &name,
        &sealed,
        &held,
        replaced.as_deref(),
    ))
}

/// Asks about each file; those that were cleaned go from the list.
fn offer_to_remove(held: &mut Vec<Held>, keys: &Keys) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    for held in held.drain(..) {
        let mut to = io::stderr().lock();
        let question = format!("{} holds them in the clear, {}", shown(&held), REMOVE);
        write!(to, "{question}").and_then(|()| to.flush())?;
        drop(to);
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            plain::remove(&held.file, keys)?;
        } else {
            rest.push(held);
        }
    }
    *held = rest;
    Ok(())
}

const REMOVE: &str = "and programs use those first. Take these lines out? [y/N] ";

fn use_them(dir: &Path, given: &Run) -> anyhow::Result<Outcome> {
    leave_no_core()?;
    ensure!(
        !given.command.is_empty() || !io::stdout().is_terminal(),
        "the keys are not shown at a terminal: give a command behind `--`, or let \
         credential_process in ~/.aws/config call this (`zk-setup credentials run --help`)"
    );
    let path = file(dir, &given.credentials);
    let keys = Sealed::read(&path)
        .with_context(|| format!("cannot use the keys {}", given.credentials))?
        .unlock()?;
    keys.in_force(Timestamp::now())?;
    let Some((program, arguments)) = given.command.split_first() else {
        print(&keys)?;
        return Ok(Outcome {
            text: String::new(),
            json: Value::Null,
            hints: Vec::new(),
            findings: false,
        });
    };
    match become_command(&keys, program, arguments)? {}
}

/// One JSON object, past the buffer that the standard library keeps.
fn print(keys: &Keys) -> anyhow::Result<()> {
    let mut json = keys.to_json()?;
    json.push(b'\n');
    let mut stdout = File::from(io::stdout().lock().as_fd().try_clone_to_owned()?);
    stdout
        .write_all(&json)
        .context("cannot write to standard output")
}

/// Comes back only if the command can't be run.
fn become_command(
    keys: &Keys,
    program: &OsString,
    arguments: &[OsString],
) -> anyhow::Result<Infallible> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(ACCESS_KEY_ID, &keys.access_key_id)
        .env(SECRET_ACCESS_KEY, keys.secret_access_key.reveal());
    // those of other keys would be taken for these keys' own
    command.env_remove(OLD_SESSION_TOKEN);
    match &keys.session_token {
        Some(token) => command.env(SESSION_TOKEN, token.reveal()),
        None => command.env_remove(SESSION_TOKEN),
    };
    match &keys.expiration {
        Some(until) => command.env(EXPIRATION, until.to_string()),
        None => command.env_remove(EXPIRATION),
    };
    match &keys.account_id {
        Some(account) => command.env(ACCOUNT_ID, account),
        None => command.env_remove(ACCOUNT_ID),
    };
    for name in PROFILES {
        if env::var_os(name).is_some() {
            tracing::warn!(
                "{name} is taken from the command's environment, since some SDKs would use the \
                 profile's keys; if its region is needed, set AWS_REGION"
            );
            command.env_remove(name);
        }
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(program).display()))
}

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
/// botocore looks here first.
const OLD_SESSION_TOKEN: &str = "AWS_SECURITY_TOKEN";
const EXPIRATION: &str = "AWS_CREDENTIAL_EXPIRATION";
const ACCOUNT_ID: &str = "AWS_ACCOUNT_ID";
const PROFILES: [&str; 2] = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"];

fn forget(dir: &Path, name: &Name) -> anyhow::Result<Outcome> {
    let path = file(dir, name);
    let sealed = Sealed::look_at(&path);
    let removed = fs::remove_file(&path).and_then(|()| {
        let dir = path.parent().unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    });
    removed.with_context(|| format!("cannot remove {}", path.display()))?;
    let mut hints = Vec::new();
    let id = match &sealed {
        Ok(sealed) => Some(sealed.access_key_id.as_str()),
        Err(problem) => {
            hints.push(format!(
                "Which access key it was can't be told ({}). These there are in AWS: aws iam \
                 list-access-keys --user-name USER",
                escaped(&format!("{problem:#}"))
            ));
            None
        }
    };
    hints.extend(id.map(deactivation));
    hints.push(
        "The file is gone, its bytes perhaps not: nothing on an SD card can be overwritten for \
         certain."
            .to_owned(),
    );
    let text = match id {
        Some(id) => format!("forgotten {name}, access key {id}"),
        None => format!("forgotten {name}"),
    };
    Ok(Outcome {
        text,
        json: json!({
            "name": name.to_string(),
            "file": path.display().to_string(),
            "accessKeyId": id,
        }),
        hints,
        findings: false,
    })
}

/// What makes a key worthless, wherever copies of it are.
fn deactivation(id: &str) -> String {
    if id.starts_with(TEMPORARY) {
        return format!(
            "{id} is of a session, which ends by itself; to end it before that, revoke the role's \
             sessions in the IAM console."
        );
    }
    format!(
        "Deactivate the key, with the keys of whoever may, and delete it when nothing misses it:\n  \
         aws iam update-access-key --access-key-id {id} --status Inactive --user-name USER\n  aws \
         iam delete-access-key --access-key-id {id} --user-name USER"
    )
}

/// How the ids of a session's keys begin.
const TEMPORARY: &str = "ASIA";

fn told_of_seal(
    dir: &Path,
    name: &Name,
    sealed: &Sealed,
    held: &[Held],
    replaced: Option<&str>,
) -> Outcome {
    let path = file(dir, name);
    let id = &sealed.access_key_id;
    let mut hints = Vec::new();
    let profile = process(dir, name).map(|line| {
        let section = match name.0.as_str() {
            DEFAULT => "[default]".to_owned(),
            name => format!("[profile {name}]"),
        };
        [section, format!("credential_process = {line}")]
    });
    match &profile {
        Some([section, line]) => {
            hints.push("For programs that use AWS, in ~/.aws/config:".to_owned());
            hints.push(format!("  {section}\n  {line}"));
        }
        None => hints.push(
            "For credential_process, have the program and the directory in paths without quotation \
             marks, $, `, \\, # and ;."
                .to_owned(),
        ),
    }
    hints.push(format!(
        "Or: {} credentials run --credentials {name} -- aws sts get-caller-identity",
        program(dir)
    ));
    if sealed.hsm.backend() == BackendKind::Soft {
        hints.push(
            "This protects NOTHING: the HSM is a key file, and whoever has the card has both. It \
             is for development."
                .to_owned(),
        );
    }
    for held in held {
        hints.push(format!(
            "They are still in the clear in {}: take these lines out; programs use them first.",
            shown(held)
        ));
    }
    hints.push(
        "What was once written on an SD card can be read from it, even when it is removed: if \
         these keys were, make new ones in AWS, seal those from standard input, and deactivate \
         these."
            .to_owned(),
    );
    if let Some(id) = replaced {
        hints.push(format!("{id} is no longer sealed here."));
        hints.push(deactivation(id));
    }
    let plaintext = held
        .iter()
        .map(|held| json!({ "file": held.file.display().to_string(), "lines": held.lines }));
    Outcome {
        text: format!(
            "sealed {}\n  access key  {id}\n  locked by   {}, key {}\n  unlocked again, the same",
            path.display(),
            sealed.hsm,
            sealed.hsm_key
        ),
        json: json!({
            "name": name.to_string(),
            "file": path.display().to_string(),
            "accessKeyId": id,
            "hsm": sealed.hsm.to_string(),
            "hsmKey": sealed.hsm_key.to_string(),
            "config": profile,
            "plaintext": plaintext.collect::<Vec<_>>(),
            "replaced": replaced,
        }),
        hints,
        findings: false,
    }
}

fn shown(held: &Held) -> String {
    let numbers: Vec<_> = held.lines.iter().map(ToString::to_string).collect();
    let lines = if numbers.len() == 1 { "line" } else { "lines" };
    format!("{}, {lines} {}", held.file.display(), numbers.join(", "))
}

/// What `credential_process` is to be, if the paths can stand there: the shell,
/// Python's shlex and AWS's own files each have a say.
fn process(dir: &Path, name: &Name) -> Option<String> {
    let quoted = |path: PathBuf| {
        let text = path.to_str()?;
        let breaks = |c: char| c.is_control() || "\"'$`\\#;%".contains(c);
        (!text.contains(breaks)).then(|| format!("\"{text}\""))
    };
    let program = quoted(env::current_exe().ok()?)?;
    let dir = quoted(std::path::absolute(dir).ok()?)?;
    Some(format!(
        "{program} --dir {dir} credentials run --credentials {name}"
    ))
}

/// The program with the directory it was told.
fn program(dir: &Path) -> String {
    match dir.to_str() {
        Some(crate::arguments::DEFAULT_DIR) | None => "zk-setup".to_owned(),
        Some(dir) => format!("zk-setup --dir {dir}"),
    }
}

fn file(dir: &Path, name: &Name) -> PathBuf {
    dir.join("credentials").join(format!("{name}.sealed"))
}

/// For the user alone.
fn make_dir(file: &Path) -> anyhow::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    let missing = iter::successors(Some(dir), |dir| dir.parent()).take_while(|dir| !dir.exists());
    let missing: Vec<_> = missing.collect();
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // each is a new name in the one above it
        for dir in missing.iter().filter_map(|dir| dir.parent()) {
            let dir = if dir.as_os_str().is_empty() {
                Path::new(".")
            } else {
                dir
            };
            File::open(dir)?.sync_all()?;
        }
        Ok::<_, io::Error>(())
    };
    make().with_context(|| format!("cannot make {}", dir.display()))
}

/// Keys are not to end up in the file that the kernel makes of a program that
/// crashes, nor to be read by a debugger of the same user.
fn leave_no_core() -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}

const DEFAULT: &str = "default";

const SEAL_HELP: &str = "\
Examples:
  zk-setup credentials seal --hsm zymkey:slot=0 --profile ops
  zk-setup credentials seal ops --hsm zymkey:slot=0          asks, at a terminal
  aws iam create-access-key --user-name zk-ops --query AccessKey --output json |
    jq '{Version: 1, AccessKeyId, SecretAccessKey}' |
    zk-setup credentials seal ops --hsm zymkey:slot=0        never on the disk

It protects the keys on a stolen card. It does not protect a running machine:
whoever is root there, or you, has the HSM unlock them.";

const RUN_HELP: &str = "\
Examples:
  zk-setup credentials run --credentials ops -- aws sts get-caller-identity
  zk-setup credentials run -- zk-setup plan

In ~/.aws/config, for every program that uses AWS (`seal` prints these lines):
  [profile ops]
  credential_process = \"/usr/bin/zk-setup\" --dir \"/home/me/zk\" credentials run --credentials ops

Exit codes: the command's own; without one 0; 1 if the keys could not be had or
the command not be run.";
