//! Where the parties' keys are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use zk_envelope::KeyId;
use zk_hsm::{Hsm, HsmUri, create_soft_key};
use zk_hsm_sim::{Daemon, Device, Fault, Faults, Model, Rule};

/// What holds the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Keys {
    /// A file each, for development
    Soft,
    /// A simulated chip each, loaded and called as the vendor's library is
    Sim,
}

impl Keys {
    /// A key for somebody of this name.
    pub(crate) fn make(self, dir: &Path, name: &str) -> Result<HsmUri> {
        if self == Self::Soft {
            return Ok(create_soft_key(dir.join(format!("{name}.key.pem")))?);
        }
        let device = Device::create(chip_dir(dir, name), Model::Zymkey4i)?;
        let module = device.module_path();
        let module = module.to_str().context("a path is UTF-8")?;
        let encoded: String = module.bytes().map(encode).collect();
        Ok(format!("zymkey:slot=0?module-path={encoded}").parse()?)
    }

    /// The chip that holds the key of somebody of this name.
    pub(crate) fn chip(self, dir: &Path, name: &str) -> Result<Option<Chip>> {
        Ok(match self {
            Self::Soft => None,
            Self::Sim => Some(Chip {
                device: Device::open(chip_dir(dir, name))?,
            }),
        })
    }
}

fn chip_dir(dir: &Path, name: &str) -> PathBuf {
    dir.join("chips").join(name)
}

/// A byte of a path, as a URI has it.
fn encode(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"/-._".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

/// What signs, in a few words.
pub(crate) fn describe(hsm: &Hsm) -> Result<String> {
    let info = hsm.info()?;
    let key = KeyId::of(hsm.public_key()).to_string();
    let key = &key[..16];
    let model = info.model.unwrap_or_default();
    Ok(if matches!(info.backend, zk_hsm::BackendKind::Soft) {
        format!("{key}…, a DEVELOPMENT key in a file, where a Pi has a Zymkey")
    } else {
        format!(
            "{key}… in slot 0 of a SIMULATED chip ({model}), called by the vendor's C functions"
        )
    })
}

/// A simulated chip, which fails on command.
pub(crate) struct Chip {
    device: Device,
}

impl Chip {
    /// The next signatures fail, then two are wrong.
    pub(crate) fn err(&self) -> Result<()> {
        let rules = vec![
            Rule::new("sign", Fault::Code(-110)).count(ERRORS),
            Rule::new("sign", Fault::FlipR).after(ERRORS + 2).count(1),
            Rule::new("sign", Fault::FlipS).after(ERRORS + 4).count(1),
        ];
        self.set(0, rules)
    }

    /// The daemon that leads to it is another one from now on.
    pub(crate) fn restart(&self) -> Result<()> {
        self.set(1, Vec::new())
    }

    /// It takes the next signature, and doesn't come back.
    pub(crate) fn hang(&self) -> Result<()> {
        self.set(1, vec![Rule::new("sign", Fault::Hang)])
    }

    fn set(&self, restarts: u64, rules: Vec<Rule>) -> Result<()> {
        let daemon = Daemon {
            restarts,
            ..Daemon::default()
        };
        Ok(self.device.set_faults(&Faults { daemon, rules })?)
    }
}

/// Signatures that fail, in a row.
pub(crate) const ERRORS: u64 = 3;
