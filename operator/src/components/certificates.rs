//! The certificate of the managed Postgres, and the authority that signs it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::ToSpan;
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};

use super::meta::Component;
use super::pod::hex;
use super::{Desired, Kind, Observed};
use crate::validate::Deployment;

/// Entries of the Secret, as in those of cert-manager.
pub const AUTHORITY: &str = "ca.crt";
pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";
const AUTHORITY_KEY: &str = "ca.key";
/// The day on which the certificate ends, and its number.
const EXPIRES: &str = "expires";
const SERIAL: &str = "serial";

const AUTHORITY_YEARS: i64 = 20;
const CERTIFICATE_DAYS: i32 = 365;
/// A certificate that has less left is made anew, and the pods with it.
const RENEW_DAYS: i32 = 120;

/// # Errors
/// When the system has no randomness for a key.
pub fn add(
    desired: &mut Desired,
    deployment: &Deployment,
    observed: &Observed,
    today: Date,
    random: &mut impl Rng,
) -> Result<(), rcgen::Error> {
    let postgres = &deployment.spec.postgres;
    if postgres.external.is_some() || postgres.tls_secret.is_some() {
        return Ok(());
    }
    let names = [name(deployment, "ca"), secret(deployment)];
    let [mut authority, mut certificate] =
        [0, 1].map(|number| observed.secret_data(&names[number]));
    if ![AUTHORITY, AUTHORITY_KEY].iter().all(|entry| authority.contains_key(*entry)) {
        authority = new_authority(deployment, today)?;
    }
    if !is_good(&certificate, &authority, today) {
        certificate = new_certificate(deployment, &authority, today, random)?;
    }
    for (name, data) in names.into_iter().zip([authority, certificate]) {
        let metadata = deployment.child_of_name(Component::Postgres, name);
        let type_ = Some("Opaque".to_owned());
        desired
            .add(Kind::Secret, Secret { metadata, type_, data: Some(data), ..Secret::default() });
    }
    Ok(())
}

/// The Secret with the certificate.
pub fn secret(deployment: &Deployment) -> String {
    let given = deployment.spec.postgres.tls_secret.clone();
    given.unwrap_or_else(|| name(deployment, "tls"))
}

/// Another certificate has another hash.
pub fn hash(deployment: &Deployment, observed: &Observed) -> String {
    match &deployment.spec.postgres.tls_secret {
        Some(given) => observed.secret_hash([given.as_str()]),
        None => text(&observed.secret_data(&secret(deployment)), SERIAL).to_owned(),
    }
}

/// When the certificate that the operator made ends, in seconds since 1970.
pub fn ends(deployment: &Deployment, observed: &Observed) -> Option<i64> {
    let postgres = &deployment.spec.postgres;
    if postgres.external.is_some() || postgres.tls_secret.is_some() {
        return None;
    }
    let day: Date = text(&observed.secret_data(&secret(deployment)), EXPIRES).parse().ok()?;
    Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

type Data = BTreeMap<String, ByteString>;

fn name(deployment: &Deployment, suffix: &str) -> String {
    format!("{}-{suffix}", deployment.child_name(Component::Postgres))
}

fn text<'a>(data: &'a Data, entry: &str) -> &'a str {
    data.get(entry).and_then(|bytes| std::str::from_utf8(&bytes.0).ok()).unwrap_or_default()
}

fn data<const N: usize>(entries: [(&str, String); N]) -> Data {
    let bytes = |(entry, text): (&str, String)| (entry.to_owned(), ByteString(text.into_bytes()));
    entries.into_iter().map(bytes).collect()
}

fn is_good(certificate: &Data, authority: &Data, today: Date) -> bool {
    let complete = [CERTIFICATE, KEY, SERIAL].iter().all(|entry| certificate.contains_key(*entry));
    let lasts = |expires: Date| today.until(expires).is_ok_and(|left| left.get_days() > RENEW_DAYS);
    complete
        && certificate.get(AUTHORITY) == authority.get(AUTHORITY)
        && text(certificate, EXPIRES).parse().is_ok_and(lasts)
}

fn new_authority(deployment: &Deployment, today: Date) -> Result<Data, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = authority_params(deployment);
    valid(&mut params, today, today.saturating_add(AUTHORITY_YEARS.years()));
    let certificate = params.self_signed(&key)?;
    Ok(data([(AUTHORITY, certificate.pem()), (AUTHORITY_KEY, key.serialize_pem())]))
}

fn authority_params(deployment: &Deployment) -> CertificateParams {
    let mut params = CertificateParams::default();
    let common = format!("{}/{} Postgres", deployment.namespace, deployment.name);
    params.distinguished_name.push(DnType::CommonName, common);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// For the Services, by the names that clients in the cluster use.
fn new_certificate(
    deployment: &Deployment,
    authority: &Data,
    today: Date,
    random: &mut impl Rng,
) -> Result<Data, rcgen::Error> {
    let mut names = Vec::new();
    for role in ["rw", "ro"] {
        let service = name(deployment, role);
        names.push(format!("{service}.{}", deployment.namespace));
        names.push(deployment.host(&service));
        names.push(service);
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name(deployment, "rw"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let expires = today.saturating_add(CERTIFICATE_DAYS.days());
    valid(&mut params, today, expires);
    let serial: [u8; 16] = random.random();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let authority_key = KeyPair::from_pem(text(authority, AUTHORITY_KEY))?;
    let issuer = Issuer::new(authority_params(deployment), authority_key);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(data([
        (AUTHORITY, text(authority, AUTHORITY).to_owned()),
        (CERTIFICATE, certificate.pem()),
        (KEY, key.serialize_pem()),
        (EXPIRES, expires.to_string()),
        (SERIAL, hex(&serial)),
    ]))
}

/// From the day before, as clocks differ.
fn valid(params: &mut CertificateParams, today: Date, until: Date) {
    let time = |date: Date| {
        date_time_ymd(date.year().into(), date.month().cast_unsigned(), date.day().cast_unsigned())
    };
    params.not_before = time(today.saturating_sub(1.day()));
    params.not_after = time(until);
}
