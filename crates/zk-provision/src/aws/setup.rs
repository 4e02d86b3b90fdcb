//! A set-up in AWS as a whole.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::time::SystemTime;

use aws_config::SdkConfig;
use zk_envelope::{DeviceId, OwnerPublicKey};
use zk_store::{Options, Store, StoreError, StoreUri};
use zk_verify::DeviceRecord;

use crate::authority::clock_is_set;
use crate::aws::account::{self, Account, AwsOptions};
use crate::aws::cloud::{FUNCTION, cloud_destroy_stage, cloud_stage, function_architecture};
use crate::aws::zip::{Architecture, FunctionZip};
use crate::config::{self, Config};
use crate::desired::{DesiredDevice, Others};
use crate::destroy::Destroy;
use crate::device::{AMAZON_ROOTS, Device, Gate, Roots, Site, Trust};
use crate::files::{self, PUBLIC};
use crate::hand::{Hand, Secrets};
use crate::local::{LocalSetup, Role, Signer, read_certificate};
use crate::report::{
    Action, AddedDevice, Checked, DeviceEntry, FinishedRotation, Plan, RevokedDevice, Step,
};
use crate::{CertificateRequest, Error, Passphrase};

/// A set-up in an AWS account, and the operator's directory for it.
///
/// The directory is that of a [`LocalSetup`] without its gateway:
///
/// ```text
/// aws.toml                             where in AWS it is: region, prefix, account
/// trust.toml                           for the owners: whose signatures count
/// ca/device-ca.{crt,key}.pem           signs devices; key encrypted
/// devices/NAME/agent.toml              configuration of the device's agent
/// devices/NAME/device.crt.pem          its certificate
/// devices/NAME/amazon-roots.pem        who signs AWS's servers
/// devices/NAME/owner-ID.pub.pem        for whom it encrypts
/// devices/NAME/next/                   the same for its next key, while it changes
/// owner.pem, owner.pub.pem             the owner's key, if it is made here
/// reader.toml                          configuration of the owner's reader
/// ```
///
/// What is in the account is found by name and known as ours by its tags
/// (`zk:set-up` = the prefix); what isn't ours is left alone, and where it has a
/// name that is needed, that is [`Error::NotOurs`].
///
/// Certificates are let in by AWS IoT where it knows them as `ACTIVE`: that of
/// each device, and the next one while it changes its key. One that was retired is
/// `INACTIVE`, one that was revoked `REVOKED`.
#[derive(Clone, Debug)]
pub struct AwsSetup {
    local: LocalSetup,
    account: Account,
    overrides: Vec<(&'static str, String)>,
    is_remembered: bool,
}

/// What a set-up in AWS is to be.
#[derive(Clone, Debug)]
pub struct AwsDesired {
    /// The program that verifies. `None`: the one that is there stays.
    pub function: Option<FunctionZip>,
    /// Who signs the certificate of what devices publish to, in PEM, where that is
    /// not AWS. `None`: Amazon's own authorities.
    pub roots: Option<String>,
    /// Whom devices encrypt for, as in [`Desired`](crate::Desired).
    pub owners: Vec<OwnerPublicKey>,
    /// The devices.
    pub devices: BTreeMap<DeviceId, DesiredDevice>,
    /// What becomes of devices that it doesn't name.
    pub others: Others,
}

impl AwsSetup {
    /// The authorities that sign the certificates of AWS's servers, in PEM.
    pub const AMAZON_ROOTS: &str = include_str!("../../data/amazon-roots.pem");

    /// Finds credentials and region where AWS's own tools find them, and asks AWS
    /// whose they are.
    ///
    /// # Errors
    /// [`Error::NoRegion`], [`Error::Prefix`], [`Error::Aws`];
    /// [`Error::OtherAccount`], [`Error::OtherRegion`], [`Error::OtherPrefix`] if the
    /// directory is for another one; [`Error::Io`], [`Error::Malformed`].
    pub async fn connect(dir: impl Into<PathBuf>, options: &AwsOptions) -> Result<Self, Error> {
        let local = LocalSetup::new(dir);
        let place = AwsPlace::of(&local)?;
        let mut options = options.clone();
        if let (None, Some(place)) = (&options.region, &place) {
            let told = told_region();
            options.region = Some(told.unwrap_or_else(|| place.region.clone()));
        }
        let prefix = options.prefix.clone();
        let prefix = prefix.or_else(|| place.as_ref().map(|place| place.prefix.clone()));
        let prefix = prefix.unwrap_or_else(|| "zk".to_owned());
        let config = account::load(&options).await;
        Self::over(local, &prefix, &config, place).await
    }

    /// The same over a configuration of the caller's, for credentials, HTTP
    /// clients and time-outs of one's own.
    ///
    /// # Errors
    /// As [`AwsSetup::connect`].
    pub async fn with_config(
        dir: impl Into<PathBuf>,
        prefix: &str,
        config: &SdkConfig,
    ) -> Result<Self, Error> {
        let local = LocalSetup::new(dir);
        let place = AwsPlace::of(&local)?;
        Self::over(local, prefix, config, place).await
    }

    async fn over(
        local: LocalSetup,
        prefix: &str,
        config: &SdkConfig,
        place: Option<AwsPlace>,
    ) -> Result<Self, Error> {
        // What is somewhere else would be out of sight from then on, or, where
        // something is taken away, another's.
        if let Some(place) = &place {
            if place.prefix != prefix {
                return Err(Error::OtherPrefix {
                    path: local.aws_file(),
                    expected: place.prefix.clone(),
                    found: prefix.to_owned(),
                });
            }
            if let Some(region) = config.region()
                && region.as_ref() != place.region
            {
                return Err(Error::OtherRegion {
                    path: local.aws_file(),
                    expected: place.region.clone(),
                    found: region.to_string(),
                });
            }
        }
        let account = Account::over(config, prefix).await?;
        if let Some(place) = &place
            && place.account != account.names.account
        {
            return Err(Error::OtherAccount {
                path: local.aws_file(),
                expected: place.account.clone(),
                found: account.names.account,
                caller: account.caller,
            });
        }
        Ok(Self {
            local,
            account,
            overrides: account::overrides(config),
            is_remembered: place.is_some(),
        })
    }

    /// The operator's directory. Its own operations are for a gateway, but for
    /// those that only read.
    #[must_use]
    pub fn local(&self) -> &LocalSetup {
        &self.local
    }

    /// Whether the directory says where in AWS the set-up is. If not, it is where
    /// options, environment and profile say.
    #[must_use]
    pub fn is_remembered(&self) -> bool {
        self.is_remembered
    }

    /// The account's number.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account.names.account
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.account.names.region
    }

    /// What every name begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.account.names.prefix
    }

    /// Who asks: the ARN of a user or of a role's session.
    #[must_use]
    pub fn caller(&self) -> &str {
        &self.account.caller
    }

    /// The services that are asked elsewhere than at AWS, and where.
    #[must_use]
    pub fn overrides(&self) -> &[(&'static str, String)] {
        &self.overrides
    }

    /// How many requests were sent to AWS so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.account.calls()
    }

    /// Where devices publish to, `host:port`.
    ///
    /// # Errors
    /// [`Error::Aws`].
    pub async fn endpoint(&self) -> Result<String, Error> {
        self.account.endpoint().await
    }

    /// What the function that is there runs on, if there is one.
    ///
    /// # Errors
    /// [`Error::Aws`].
    pub async fn function_architecture(&self) -> Result<Option<Architecture>, Error> {
        function_architecture(&self.account).await
    }

    /// The tables, which may not be there yet.
    ///
    /// # Errors
    /// [`Error::Store`] for a prefix that makes no table names.
    pub fn store(&self) -> Result<Store, Error> {
        let options = Options {
            prefix: self.account.names.prefix.clone(),
            ..Options::default()
        };
        Ok(Store::with_client(self.account.dynamodb.clone(), options)?)
    }

    /// What [`AwsSetup::apply`] would do now. It changes nothing, and needs no
    /// passphrase.
    ///
    /// # Errors
    /// What keeps it from being done: as [`AwsSetup::apply`], but for passphrases.
    pub async fn plan(&self, desired: &AwsDesired, now: SystemTime) -> Result<Plan, Error> {
        clock_is_set(now)?;
        let mut hand = Hand::that_plans(now);
        self.carry_out(&mut hand, desired).await?;
        Ok(Plan {
            steps: hand.steps,
            needs: hand.needs,
            revokes: hand.revokes,
        })
    }

    /// Makes the set-up what it is to be: the authority, the owner's key, all
    /// that is in the account, the devices, in this order. `tell` hears of each
    /// step when it is done.
    ///
    /// It is safe to run again, and after a failure at any call that is what
    /// completes it: every step looks at what is there. A name that is taken by
    /// something else is found where it is needed; to find it before anything is
    /// made, [plan](AwsSetup::plan) first.
    ///
    /// # Errors
    /// As [`LocalSetup::apply`]; [`Error::NoFunction`], [`Error::NotOurs`], [`Error::NewerSetUp`],
    /// [`Error::NotAnAuthority`], [`Error::AuthorityExpired`],
    /// [`Error::AuthorityTaken`], [`Error::RevokedInAws`], [`Error::Aws`].
    pub async fn apply(
        &self,
        desired: &AwsDesired,
        secrets: Secrets<'_>,
        now: SystemTime,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<Vec<Step>, Error> {
        clock_is_set(now)?;
        files::make_dir(self.local.dir())?;
        let _lock = files::lock(self.local.dir())?;
        let mut hand = Hand::that_does(now, secrets, tell);
        self.carry_out(&mut hand, desired).await?;
        Ok(hand.steps)
    }

    async fn carry_out(&self, hand: &mut Hand<'_>, desired: &AwsDesired) -> Result<(), Error> {
        self.place_stage(hand)?;
        let signer = self.signer_stage(hand)?;
        let mut trust = Trust::read(&self.local)?;
        let owners = self.local.owner_stage(hand, &desired.owners, &trust.file)?;
        self.local
            .reader_stage(hand, &self.uri(), Some(self.prefix()))?;
        self.account.authority_stage(hand, &signer).await?;
        cloud_stage(hand, &self.account, desired.function.as_ref()).await?;
        let store = self.store()?;
        let there = self.records(hand, &store).await?;
        let site = Site {
            signer: &signer,
            roots: Roots {
                file: AMAZON_ROOTS,
                pem: Some(desired.roots.as_deref().unwrap_or(Self::AMAZON_ROOTS)),
            },
            endpoint: Some(self.account.endpoint().await?),
            store: there.is_some().then_some(&store),
            records: there.unwrap_or_default(),
            gate: Gate::Iot(&self.account),
        };
        let wanted = (&desired.devices, &desired.others);
        self.local
            .devices_stage(hand, wanted, &owners, &mut trust, &site)
            .await
    }

    /// Makes the authority that signs devices, and registers it.
    ///
    /// # Errors
    /// As [`AwsSetup::apply`].
    pub async fn init_authority(
        &self,
        passphrase: &Passphrase,
        now: SystemTime,
    ) -> Result<Vec<Step>, Error> {
        clock_is_set(now)?;
        files::make_dir(self.local.dir())?;
        let _lock = files::lock(self.local.dir())?;
        let mut tell = |_: &Step| {};
        let mut hand = Hand::that_does(now, with(passphrase), &mut tell);
        self.place_stage(&mut hand)?;
        let signer = self.signer_stage(&mut hand)?;
        self.account.authority_stage(&mut hand, &signer).await?;
        Ok(hand.steps)
    }

    /// What AWS IoT says of the authority that signs devices: `ACTIVE`,
    /// `INACTIVE`, or nothing where it isn't registered.
    ///
    /// # Errors
    /// [`Error::NoAuthorities`], [`Error::Aws`].
    pub async fn authority_status(&self) -> Result<Option<&'static str>, Error> {
        let id = self.local.authority_certificate(Role::Device)?.principal();
        let found = self.account.authority(&id).await?;
        Ok(found.map(|found| found.status()))
    }

    /// Lets a device publish, as [`LocalSetup::add_device`] does; and registers
    /// its certificate, with a thing and a policy of its own.
    ///
    /// # Errors
    /// As [`LocalSetup::add_device`] and [`AwsSetup::apply`].
    pub async fn add_device(
        &self,
        device: &Device,
        passphrase: &Passphrase,
        now: SystemTime,
    ) -> Result<AddedDevice, Error> {
        clock_is_set(now)?;
        let signer = Signer::of(self.local.device_authority(passphrase)?);
        self.check_authority(&signer, now)?;
        let store = self.store()?;
        let _lock = files::lock(self.local.dir())?;
        let mut tell = |_: &Step| {};
        let mut hand = Hand::that_does(now, with(passphrase), &mut tell);
        self.account.authority_stage(&mut hand, &signer).await?;
        let site = self.site(&signer, &store).await?;
        self.local.add_stage(hand, device, &site).await
    }

    /// Prepares a device's change to another key, as
    /// [`LocalSetup::rotate_device`] does; the new certificate is registered
    /// beside the old one.
    ///
    /// # Errors
    /// As [`LocalSetup::rotate_device`] and [`AwsSetup::apply`].
    pub async fn rotate_device(
        &self,
        request: &CertificateRequest,
        hsm: Option<&str>,
        passphrase: &Passphrase,
        now: SystemTime,
    ) -> Result<AddedDevice, Error> {
        clock_is_set(now)?;
        let signer = Signer::of(self.local.device_authority(passphrase)?);
        self.check_authority(&signer, now)?;
        let store = self.store()?;
        let _lock = files::lock(self.local.dir())?;
        let mut tell = |_: &Step| {};
        let mut hand = Hand::that_does(now, with(passphrase), &mut tell);
        self.account.authority_stage(&mut hand, &signer).await?;
        let site = self.site(&signer, &store).await?;
        self.local.begin_rotation(hand, request, hsm, site).await
    }

    /// Retires a device's old key, as [`LocalSetup::finish_rotation`] does, and
    /// makes its certificate `INACTIVE`.
    ///
    /// # Errors
    /// As [`LocalSetup::finish_rotation`] and [`AwsSetup::apply`].
    pub async fn finish_rotation(
        &self,
        device: &DeviceId,
        now: SystemTime,
    ) -> Result<FinishedRotation, Error> {
        clock_is_set(now)?;
        let signer = Signer {
            certificate: Some(self.local.authority_certificate(Role::Device)?),
            ..Signer::default()
        };
        let store = self.store()?;
        let _lock = files::lock(self.local.dir())?;
        let mut tell = |_: &Step| {};
        let hand = Hand::that_does(now, Secrets::default(), &mut tell);
        let site = self.site(&signer, &store).await?;
        self.local.end_rotation(hand, device, &site).await
    }

    /// Shuts a device out, as [`LocalSetup::revoke_device`] does, and AWS IoT
    /// refuses its certificates at once.
    ///
    /// # Errors
    /// As [`LocalSetup::revoke_device`] and [`AwsSetup::apply`];
    /// [`Error::NoAuthorities`] without a directory.
    pub async fn revoke_device(
        &self,
        device: &DeviceId,
        now: SystemTime,
    ) -> Result<RevokedDevice, Error> {
        clock_is_set(now)?;
        if !self.local.dir().is_dir() {
            let dir = self.local.dir().to_owned();
            return Err(Error::NoAuthorities { dir });
        }
        let signer = Signer::default();
        let store = self.store()?;
        let _lock = files::lock(self.local.dir())?;
        let mut tell = |_: &Step| {};
        let hand = Hand::that_does(now, Secrets::default(), &mut tell);
        let site = self.site(&signer, &store).await?;
        self.local.revoke_one(hand, device, &site).await
    }

    /// What trust file and store say of every device that either of them knows,
    /// by name; nothing, before there are tables.
    ///
    /// # Errors
    /// [`Error::Envelope`] for a bad trust file, [`Error::Store`].
    pub async fn devices(&self) -> Result<Vec<DeviceEntry>, Error> {
        match self.local.devices(&self.store()?).await {
            Err(Error::Store(StoreError::NoTable { .. })) => Ok(Vec::new()),
            other => other,
        }
    }

    /// What [`AwsSetup::destroy`] would do now. It changes nothing.
    ///
    /// # Errors
    /// As [`AwsSetup::destroy`].
    pub async fn plan_destroy(&self, what: Destroy) -> Result<Plan, Error> {
        let mut hand = Hand::that_plans(SystemTime::UNIX_EPOCH);
        self.destroy_stage(&mut hand, what).await?;
        Ok(Plan {
            steps: hand.steps,
            ..Plan::default()
        })
    }

    /// Removes what was made, there and here: first what lets devices in, so that
    /// nothing is taken that nobody would keep; then the rest of the account, the
    /// tables last and only with the data; then the directory's files, as
    /// [`LocalSetup::destroy`] does. It is safe to run again.
    ///
    /// What is there is found by name and tag, so the directory need not exist.
    ///
    /// # Errors
    /// [`Error::Aws`], [`Error::NewerSetUp`]; [`Error::Busy`], [`Error::Io`],
    /// [`Error::Store`].
    pub async fn destroy(
        &self,
        what: Destroy,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<Vec<Step>, Error> {
        let mut hand = Hand::that_does(SystemTime::UNIX_EPOCH, Secrets::default(), tell);
        if !self.local.dir().is_dir() {
            self.destroy_stage(&mut hand, what).await?;
            return Ok(hand.steps);
        }
        let lock = files::lock(self.local.dir())?;
        self.destroy_stage(&mut hand, what).await?;
        self.local.remove_dir(&mut hand)?;
        drop(lock);
        Ok(hand.steps)
    }

    async fn destroy_stage(&self, hand: &mut Hand<'_>, what: Destroy) -> Result<(), Error> {
        let (_, file) = self.local.authority_files(Role::Device);
        let authority = read_certificate(&file)?.map(|found| found.principal());
        self.account
            .identity_destroy_stage(hand, authority.as_deref())
            .await?;
        cloud_destroy_stage(hand, &self.account, what.data).await?;
        self.local.destroy_stage(hand, what).await
    }

    /// Looks at everything: files and their modes, keys and certificates, what is
    /// in the account, each device on all sides. It changes nothing and needs no
    /// passphrase. Without the function's program, its code is not looked at.
    pub async fn check(&self, function: Option<&FunctionZip>, now: SystemTime) -> Vec<Checked> {
        self.local.check_aws(self, function, now).await
    }

    /// What is to be changed in the account, item by item.
    pub(crate) async fn drift(
        &self,
        function: Option<&FunctionZip>,
        now: SystemTime,
    ) -> Result<Vec<Step>, Error> {
        let mut hand = Hand::that_plans(now);
        let signer = Signer {
            certificate: Some(self.local.authority_certificate(Role::Device)?),
            is_known: true,
            ..Signer::default()
        };
        self.check_authority(&signer, now)?;
        self.account.authority_stage(&mut hand, &signer).await?;
        match cloud_stage(&mut hand, &self.account, function).await {
            // what follows it is missing as well
            Err(Error::NoFunction { name }) => {
                hand.resource(Action::Created, FUNCTION, &name, "");
            }
            done => done?,
        }
        let store = self.store()?;
        let site = self.site(&signer, &store).await?;
        let trust = Trust::read(&self.local)?;
        for name in trust.file.devices.keys() {
            if trust.active_key(name).is_none() {
                site.shut(&mut hand, name).await?;
                continue;
            }
            let file = self.local.device_dir(name).join("device.crt.pem");
            let certificate = read_certificate(&file)?;
            let next = self.local.next_certificate(name)?;
            let older = crate::device::Older::AsRecorded;
            site.admit(&mut hand, name, certificate.as_ref(), next.as_ref(), older)
                .await?;
        }
        Ok(hand.steps)
    }

    /// Writes down where in AWS the set-up is.
    fn place_stage(&self, hand: &mut Hand<'_>) -> Result<(), Error> {
        let names = &self.account.names;
        let path = self.local.aws_file();
        let mut file = Config::open_or(&path, config::AWS)?;
        for (key, value) in [
            ("region", &names.region),
            ("prefix", &names.prefix),
            ("account", &names.account),
        ] {
            file.set(key, value)?;
        }
        let reason = "as it is asked for";
        hand.file(&path, file.text_of().as_bytes(), PUBLIC, reason)
    }

    /// Makes the authority that signs devices, if there is none.
    fn signer_stage(&self, hand: &mut Hand<'_>) -> Result<Signer, Error> {
        let signer = self.local.authority_stage(hand, Role::Device)?;
        self.check_authority(&signer, hand.now)?;
        Ok(signer)
    }

    /// What AWS would refuse, without saying why.
    fn check_authority(&self, signer: &Signer, now: SystemTime) -> Result<(), Error> {
        let Some(certificate) = &signer.certificate else {
            return Ok(());
        };
        if !certificate.is_authority() {
            let (_, path) = self.local.authority_files(Role::Device);
            return Err(Error::NotAnAuthority { path });
        }
        if certificate.not_after() <= now {
            let subject = certificate.subject();
            return Err(Error::AuthorityExpired { subject });
        }
        Ok(())
    }

    async fn site<'a>(&'a self, signer: &'a Signer, store: &'a Store) -> Result<Site<'a>, Error> {
        Ok(Site {
            signer,
            roots: Roots {
                file: AMAZON_ROOTS,
                pem: Some(Self::AMAZON_ROOTS),
            },
            endpoint: Some(self.account.endpoint().await?),
            records: store.devices().await?,
            store: Some(store),
            gate: Gate::Iot(&self.account),
        })
    }

    /// What is registered; `None` in the plan of tables.
    async fn records(
        &self,
        hand: &Hand<'_>,
        store: &Store,
    ) -> Result<Option<Vec<(String, DeviceRecord)>>, Error> {
        match store.devices().await {
            Ok(records) => Ok(Some(records)),
            Err(StoreError::NoTable { .. }) if hand.plans() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The tables, as the reader is told of them.
    fn uri(&self) -> StoreUri {
        StoreUri::DynamoDb {
            region: self.region().to_owned(),
        }
    }
}

/// Where in AWS a set-up is, as its directory remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsPlace {
    /// The region.
    pub region: String,
    /// What every name begins with.
    pub prefix: String,
    /// The account's number.
    pub account: String,
}

impl AwsPlace {
    /// What the operator's directory remembers, if it does.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn of(dir: &LocalSetup) -> Result<Option<Self>, Error> {
        let path = dir.aws_file();
        let Some(file) = Config::open(&path)? else {
            return Ok(None);
        };
        let text = |key| file.text(key).map(str::to_owned);
        Ok(Some(Self {
            region: text("region")?,
            prefix: text("prefix")?,
            account: text("account")?,
        }))
    }
}

/// The region that the environment names.
fn told_region() -> Option<String> {
    ["AWS_REGION", "AWS_DEFAULT_REGION"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|region| !region.is_empty()))
}

fn with(passphrase: &Passphrase) -> Secrets<'_> {
    Secrets {
        authorities: Some(passphrase),
        owner: None,
    }
}
