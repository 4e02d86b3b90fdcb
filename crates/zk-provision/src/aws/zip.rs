//! The function's code: a zip file with our program in it.

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use aws_smithy_types::base64;
use object::elf;
use object::read::elf::FileHeader;
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::Error;

/// The processor that a Lambda function runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit ARM, the cheaper one.
    #[default]
    Arm64,
    /// 64-bit x86.
    X86_64,
}

impl Architecture {
    /// As AWS calls it: `arm64`, `x86_64`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "x86_64",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is uploaded for the function that verifies: a zip file with the program,
/// called `bootstrap`.
#[derive(Clone, PartialEq, Eq)]
pub struct FunctionZip {
    path: PathBuf,
    architecture: Architecture,
    bytes: Vec<u8>,
    sha256: String,
}

impl FunctionZip {
    /// Reads the file and looks into it: at most 50 MB, as AWS takes them, with
    /// an executable `bootstrap` in it that is a program for Linux on one of the
    /// two architectures.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::FunctionZip`] if it is anything else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let amiss = |detail: String| Error::FunctionZip {
            path: path.to_owned(),
            detail,
        };
        let mut bytes = Vec::new();
        File::open(path)
            .map_err(io)?
            .take(LARGEST + 1)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        if bytes.len() as u64 > LARGEST {
            return Err(amiss("larger than the 50 MB that AWS takes".into()));
        }
        let architecture = look_into(&bytes).map_err(amiss)?;
        let sha256 = base64::encode(Sha256::digest(&bytes));
        Ok(Self {
            path: path.to_owned(),
            architecture,
            bytes,
            sha256,
        })
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its program runs on.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the file in Base64, which is how AWS calls what it has
    /// (`CodeSha256`).
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

impl fmt::Debug for FunctionZip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FunctionZip")
            .field("path", &self.path)
            .field("architecture", &self.architecture)
            .field("bytes", &self.bytes.len())
            .field("sha256", &self.sha256)
            .finish()
    }
}

fn look_into(bytes: &[u8]) -> Result<Architecture, String> {
    let not_a_zip = |error| format!("not a zip file that can be read ({error})");
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(not_a_zip)?;
    let mut bootstrap = match zip.by_name(BOOTSTRAP) {
        Ok(found) => found,
        Err(zip::result::ZipError::FileNotFound) => {
            return Err(format!("there is no {BOOTSTRAP} at its top"));
        }
        Err(error) => return Err(not_a_zip(error)),
    };
    if bootstrap.unix_mode().is_none_or(|mode| mode & 0o111 == 0) {
        return Err(format!("its {BOOTSTRAP} may not be executed"));
    }
    let mut header = [0; size_of::<elf::FileHeader64<object::Endianness>>()];
    let no_program = |_| format!("its {BOOTSTRAP} is no program for 64-bit Linux");
    bootstrap.read_exact(&mut header).map_err(no_program)?;
    let header = elf::FileHeader64::<object::Endianness>::parse(&header[..])
        .and_then(|header| Ok(header.e_machine.get(header.endian()?)))
        .map_err(|_| no_program(io::ErrorKind::InvalidData.into()))?;
    match header {
        elf::EM_AARCH64 => Ok(Architecture::Arm64),
        elf::EM_X86_64 => Ok(Architecture::X86_64),
        other => Err(format!(
            "its {BOOTSTRAP} is for another processor (ELF machine {other}) than arm64 or x86_64"
        )),
    }
}

const BOOTSTRAP: &str = "bootstrap";
/// What can be uploaded directly.
const LARGEST: u64 = 50 << 20;
