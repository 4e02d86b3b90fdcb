use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{env, io};

use anyhow::{Context, bail, ensure};
use zeroize::Zeroizing;
use zk_provision::Passphrase;

use crate::arguments::PassphraseSource;

/// Gets the passphrase of the authorities from a file, the environment, or the
/// person at the terminal, who types it twice if it is a `new` one.
pub(crate) fn get(source: &PassphraseSource, new: bool) -> anyhow::Result<Passphrase> {
    AUTHORITIES.get(source.passphrase_file.as_deref(), new)
}

/// The same for the owner's key.
pub(crate) fn of_owner(file: Option<&Path>, new: bool) -> anyhow::Result<Passphrase> {
    OWNER.get(file, new)
}

/// Whose passphrase, and where it may come from.
struct Whose {
    prompt: &'static str,
    variable: &'static str,
    flag: &'static str,
}

impl Whose {
    fn get(&self, file: Option<&Path>, new: bool) -> anyhow::Result<Passphrase> {
        let Self { variable, flag, .. } = self;
        let text = if let Some(path) = file {
            read(path)?
        } else if let Some(text) = env::var_os(variable) {
            tracing::warn!(
                "the passphrase comes from {variable}, which all your processes can read: \
                 {flag} keeps it better"
            );
            let text = text.into_string().map(Zeroizing::new);
            text.map_err(|_| anyhow::anyhow!("{variable} is not UTF-8"))?
        } else {
            self.ask(new)?
        };
        Ok(Passphrase::new(text)?)
    }

    fn ask(&self, new: bool) -> anyhow::Result<Zeroizing<String>> {
        let Self { prompt, flag, .. } = self;
        let ask = |prompt: &str| match rpassword::prompt_password(prompt) {
            Ok(text) => Ok(Zeroizing::new(text)),
            Err(error) => Err(error).with_context(|| {
                let whose = prompt.trim_end_matches([':', ' ']).to_lowercase();
                format!("there is no terminal to ask for the {whose} on: give it with {flag}")
            }),
        };
        let text = ask(prompt)?;
        if new && *ask("The same again: ")? != *text {
            bail!("the two passphrases differ");
        }
        Ok(text)
    }
}

const AUTHORITIES: Whose = Whose {
    prompt: "Passphrase of the certificate authorities: ",
    variable: "ZK_SETUP_PASSPHRASE",
    flag: "--passphrase-file",
};

const OWNER: Whose = Whose {
    prompt: "Passphrase of the owner's key: ",
    // that of zk-reader
    variable: "ZK_OWNER_PASSPHRASE",
    flag: "--owner-passphrase-file",
};

fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let shown = path.display();
    let open = || -> io::Result<(u32, Zeroizing<String>)> {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mut text = Zeroizing::new(String::with_capacity(MAX_LEN));
        file.take(MAX_LEN as u64).read_to_string(&mut text)?;
        Ok((mode, text))
    };
    let (mode, text) = open().with_context(|| format!("passphrase file {shown}"))?;
    ensure!(
        mode & 0o077 == 0,
        "{shown}: mode {mode:03o} lets others read the passphrase; run: chmod 600 {shown}"
    );
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let single = text.len() < MAX_LEN && !line.contains(['\n', '\r']);
    ensure!(
        single,
        "{shown}: a passphrase is one line of fewer than {MAX_LEN} bytes"
    );
    Ok(Zeroizing::new(line.to_owned()))
}

/// Longer than anything that a person keeps as a passphrase.
const MAX_LEN: usize = 1024;
