//! AWS keys in the clear: where they come from, and where they still are.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{env, iter};

use anyhow::{Context, bail, ensure};
use rustix::process::geteuid;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use super::keys::{Keys, MAX_LEN, Secret};

/// The keys of a profile in `~/.aws/credentials`.
///
/// Not by the SDK: it would go on to roles, processes and the network, wipes
/// nothing, and doesn't tell where in the file they stand.
pub(super) fn of_profile(name: &str) -> anyhow::Result<Keys> {
    let path = credentials_file()?;
    let shown = path.display();
    let text = read(&path).with_context(|| format!("cannot read {shown}"))?;
    let mut found: [Option<&str>; 3] = [None; 3];
    let mut is_there = false;
    let mut inside = false;
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            inside = header
                .split_once(']')
                .is_some_and(|(header, _)| header.trim() == name);
            is_there |= inside;
        }
        // comments; and what is indented belongs to the line before it
        let Some((key, value)) = line.split_once('=').filter(|_| inside) else {
            continue;
        };
        let member = MEMBERS
            .iter()
            .position(|member| key.trim_end().eq_ignore_ascii_case(member));
        if let Some(member) = member {
            ensure!(
                found[member].is_none(),
                "{shown}: profile {name} has {} twice",
                MEMBERS[member]
            );
            let comment = value.find(" #").or_else(|| value.find(" ;"));
            found[member] = Some(value[..comment.unwrap_or(value.len())].trim());
        }
    }
    ensure!(is_there, "{shown} has no profile {name}");
    let [Some(id), Some(secret), token] = found else {
        bail!(
            "{shown}: profile {name} has no {} and {}. If its keys come from elsewhere: `aws \
             configure export-credentials --profile {name} | zk-setup credentials seal …`",
            MEMBERS[0],
            MEMBERS[1]
        );
    };
    Keys::new(id, Secret::new(secret), token.map(Secret::new), None)
        .with_context(|| format!("{shown}: profile {name}"))
}

const MEMBERS: [&str; 3] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
];

/// The keys in JSON on standard input.
pub(super) fn of_standard_input() -> anyhow::Result<Keys> {
    // all its room at once, so that growing leaves no copy behind
    let mut json = Zeroizing::new(Vec::with_capacity(MAX_INPUT + 1));
    // past the buffer that the standard library keeps
    let stdin = File::from(io::stdin().lock().as_fd().try_clone_to_owned()?);
    stdin
        .take(MAX_INPUT as u64 + 1)
        .read_to_end(&mut json)
        .context("standard input")?;
    ensure!(
        json.len() <= MAX_INPUT,
        "standard input: more than {MAX_INPUT} bytes"
    );
    ensure!(
        !json.trim_ascii().is_empty(),
        "standard input is empty: give the keys there, or name a --profile of ~/.aws/credentials"
    );
    Keys::from_json(&json).context("standard input")
}

const MAX_INPUT: usize = 2 * MAX_LEN;

/// The keys that somebody types, and nobody sees.
pub(super) fn of_terminal() -> anyhow::Result<Keys> {
    // who pastes all at once types before he is asked
    let _quiet = Quiet::new().context("the terminal")?;
    let ask = |prompt| {
        let typed = rpassword::prompt_password(prompt).map(Zeroizing::new);
        typed.context("there is no terminal to ask at")
    };
    let id = ask("Access key id (AKIA…): ")?;
    let secret = ask("Secret access key: ")?;
    let token = ask("Session token (none: Enter): ")?;
    let mut expiration = None;
    if !token.trim().is_empty() {
        let until = ask("It expires at (like 2026-11-23T11:20:44Z; not known: Enter): ")?;
        if !until.trim().is_empty() {
            let until = until.trim().parse();
            expiration = Some(until.ok().context("that is no time in RFC 3339's form")?);
        }
    }
    let token = Some(token.trim()).filter(|token| !token.is_empty());
    Keys::new(
        id.trim(),
        Secret::new(secret.trim()),
        token.map(Secret::new),
        expiration,
    )
}

/// While it lives the terminal shows nothing that is typed.
struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    fn new() -> io::Result<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Now, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// A file with keys in the clear, and the lines that hold them, from 1.
pub(super) struct Held {
    pub(super) file: PathBuf,
    pub(super) lines: Vec<usize>,
}

/// Where the SDKs' files hold these keys.
pub(super) fn held(keys: &Keys) -> Vec<Held> {
    let files = [credentials_file(), config_file()];
    let look = |file: PathBuf| {
        let text = match read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                let shown = file.display();
                tracing::warn!("{shown} could not be looked through for these keys: {error}");
                return None;
            }
        };
        let numbered = text.lines().zip(1..);
        let lines: Vec<_> = numbered
            .filter(|(line, _)| holds(line, keys))
            .map(|(_, number)| number)
            .collect();
        (!lines.is_empty()).then_some(Held { file, lines })
    };
    files.into_iter().flatten().filter_map(look).collect()
}

/// Takes the lines that hold these keys out of a file; the other lines stay.
pub(super) fn remove(file: &Path, keys: &Keys) -> anyhow::Result<()> {
    let shown = file.display();
    let remove = || {
        // a link stays one
        let path = fs::canonicalize(file)?;
        let metadata = fs::metadata(&path)?;
        if metadata.uid() != geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        let text = read(&path)?;
        let mut rest = Zeroizing::new(String::with_capacity(text.len()));
        let lines = text.split_inclusive('\n');
        rest.extend(lines.filter(|line| !holds(line, keys)));
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut new = NamedTempFile::new_in(dir)?;
        new.write_all(rest.as_bytes())?;
        let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777);
        new.as_file().set_permissions(mode)?;
        new.as_file().sync_all()?;
        new.persist(&path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    };
    remove().with_context(|| format!("cannot take the keys out of {shown}: do it by hand"))
}

fn holds(line: &str, keys: &Keys) -> bool {
    let token = keys.session_token.as_ref();
    iter::once(keys.access_key_id.as_str())
        .chain([keys.secret_access_key.reveal()])
        .chain(token.map(Secret::reveal))
        .any(|part| line.contains(part))
}

fn credentials_file() -> anyhow::Result<PathBuf> {
    aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials")
}

/// Where `credential_process` stands; keys may, too.
fn config_file() -> anyhow::Result<PathBuf> {
    aws_file("AWS_CONFIG_FILE", "config")
}

fn aws_file(variable: &str, name: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let home = env::home_dir().context("HOME is not set, and so it isn't known where .aws is")?;
    Ok(home.join(".aws").join(name))
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        let problem = format!("not a regular file of at most {MAX_FILE} bytes");
        return Err(io::Error::other(problem));
    }
    let room = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut text = Zeroizing::new(String::with_capacity(room));
    file.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

const MAX_FILE: u64 = 1024 * 1024;
