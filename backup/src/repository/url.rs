//! From the URL of a repository to an object store.
//!
//! Owns: the schemes, their options, time-outs and inner retries. Never: I/O; credentials in a URL
//! (they come from the environment) or in what is printed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::{Error, Result, redact};

/// Where a repository lies.
#[derive(Debug)]
pub(crate) enum Location {
    /// A directory; made by writers only.
    Directory(PathBuf),
    /// A bucket; the store is made without I/O.
    Store(Arc<dyn ObjectStore>),
}

fn bad(url: &Url, what: impl Into<String>) -> Error {
    let mut shown = url.clone();
    let _ = shown.set_password(None);
    let _ = shown.set_username("");
    shown.set_query(None);
    Error::Url { url: shown.to_string(), what: what.into() }
}

/// Reads a URL. Returns the location and the URL as it may be printed.
///
/// # Errors
/// `Url` with what to write instead.
pub(crate) fn parse(text: &str) -> Result<(Location, String)> {
    let url = Url::parse(text).map_err(|e| Error::Url {
        url: redact(text),
        what: format!("{e}; write file:///dir, s3://bucket/prefix, gs:// or az://"),
    })?;
    let authority_is_credential = url.password().is_some() || (url.scheme() != "az" && !url.username().is_empty());
    if authority_is_credential {
        return Err(bad(&url, "credentials do not belong in the URL; put them into the environment"));
    }
    let mut shown = url.clone();
    shown.set_query(None);
    let options: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let allowed: &[&str] = if url.scheme() == "s3" { &["endpoint", "region"] } else { &[] };
    if let Some((name, _)) = options.iter().find(|(name, _)| !allowed.contains(&name.as_str())) {
        return Err(bad(&url, format!("option {name:?} is not known; known here: {allowed:?}")));
    }
    let location = match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| bad(&url, "needs an absolute path: file:///dir"))?;
            Location::Directory(path)
        }
        "s3" => Location::Store(prefixed(s3(&url, &options)?, &url)?),
        "gs" => {
            let store = GoogleCloudStorageBuilder::from_env().with_url(shown.as_str());
            let store = store.with_client_options(client_options()).with_retry(retry()).build();
            Location::Store(prefixed(store.map_err(|e| bad(&url, redact(&e.to_string())))?, &url)?)
        }
        "az" => {
            let store = MicrosoftAzureBuilder::from_env().with_url(shown.as_str());
            let store = store.with_client_options(client_options()).with_retry(retry()).build();
            Location::Store(prefixed(store.map_err(|e| bad(&url, redact(&e.to_string())))?, &url)?)
        }
        other => return Err(bad(&url, format!("scheme {other:?} is not known; use file, s3, gs or az"))),
    };
    Ok((location, shown.to_string()))
}

fn s3(url: &Url, options: &[(String, String)]) -> Result<impl ObjectStore> {
    let option = |name: &str| options.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let mut base = url.clone();
    base.set_query(None);
    let mut builder = AmazonS3Builder::from_env().with_url(base.as_str());
    let env = |name: &str| std::env::var(name).ok();
    let endpoint = option("endpoint").or_else(|| env("AWS_ENDPOINT_URL_S3")).or_else(|| env("AWS_ENDPOINT_URL"));
    // Plain http only when somebody wrote it down.
    let allow_http = endpoint.as_deref().or(env("AWS_ENDPOINT").as_deref()).is_some_and(|e| e.starts_with("http://"));
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = option("region") {
        builder = builder.with_region(region);
    }
    let client = client_options().with_allow_http(allow_http);
    builder.with_client_options(client).with_retry(retry()).build().map_err(|e| bad(url, redact(&e.to_string())))
}

fn prefixed(store: impl ObjectStore, url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let prefix = ObjectPath::from_url_path(url.path()).map_err(|e| bad(url, e.to_string()))?;
    if prefix.as_ref().is_empty() { Ok(Arc::new(store)) } else { Ok(Arc::new(PrefixStore::new(store, prefix))) }
}

/// The whole request is bounded, so transfers go in pieces of at most 8 MiB or one log object.
fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        .with_read_timeout(Duration::from_secs(10))
        .with_timeout(Duration::from_secs(30))
}

/// Few inner retries: the outer layer looks at what a lost reply did before it repeats.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(15),
    }
}

/// The store of a directory that exists.
///
/// # Errors
/// The store's own.
pub(crate) fn directory(path: &std::path::Path) -> object_store::Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(LocalFileSystem::new_with_prefix(path)?.with_fsync(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused_with_a_hint() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        assert!(
            matches!(parse("file:///var/backup"), Ok((Location::Directory(_), shown)) if shown == "file:///var/backup")
        );
        let (_, shown) = parse("s3://bucket/pre/fix?endpoint=http://127.0.0.1:9000&region=eu").unwrap();
        assert_eq!(shown, "s3://bucket/pre/fix");
        for (text, part) in [
            ("nonsense", "write file:///dir"),
            ("memory:///x", "scheme \"memory\""),
            ("s3://AKIA:secret@bucket/x", "environment"),
            ("s3://bucket/x?endpont=http://h", "\"endpont\""),
            ("file:///x?region=eu", "\"region\""),
        ] {
            let error = parse(text).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(part) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
