//! Connection strings as libpq reads them: several hosts in one.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// One host of a connection string.
#[derive(Clone)]
pub struct Host {
    /// `host:port`, for logs, metrics and answers.
    pub name: String,
    pub options: PgConnectOptions,
}

/// Takes `postgres://user:password@a:5432,b:5432/database?sslmode=…` apart. A password in the
/// string goes before `password`.
///
/// # Errors
/// What is wrong with it, without the string itself: it may hold a password.
pub fn hosts(url: &str, password: Option<&str>) -> Result<Vec<Host>, String> {
    let (scheme, rest) =
        url.split_once("://").ok_or("must begin with postgres:// or postgresql://")?;
    if !["postgres", "postgresql"].contains(&scheme) {
        return Err("must begin with postgres:// or postgresql://".to_owned());
    }
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, list) = match authority.rsplit_once('@') {
        Some((user, list)) => (format!("{user}@"), list),
        None => (String::new(), authority),
    };
    let has_password = user.contains(':');
    list.split(',')
        .map(|host| {
            if host.is_empty() {
                return Err("has a host without a name".to_owned());
            }
            // The text is not shown: it may be part of a password that was not escaped.
            let mut options = PgConnectOptions::from_str(&format!("{scheme}://{user}{host}{tail}"))
                .map_err(|_| "cannot be read as a connection string".to_owned())?;
            if let (Some(password), false) = (password, has_password) {
                options = options.password(password);
            }
            let name = format!("{}:{}", options.get_host(), options.get_port());
            Ok(Host { name, options })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(url: &str) -> Vec<String> {
        hosts(url, None).unwrap().into_iter().map(|host| host.name).collect()
    }

    #[test]
    fn every_host_keeps_its_port_and_shares_the_rest() {
        let hosts = hosts("postgres://me@a:5433,b/data?sslmode=disable", None).unwrap();
        for host in &hosts {
            assert_eq!(host.options.get_username(), "me");
            assert_eq!(host.options.get_database(), Some("data"));
        }
        assert_eq!(hosts[0].name, "a:5433");
        assert_eq!(hosts[1].name, "b:5432");
    }

    #[test]
    fn one_host_and_addresses_in_brackets_are_read() {
        assert_eq!(names("postgresql://localhost/data"), ["localhost:5432"]);
        assert_eq!(names("postgres://me:a%40b@[::1]:6000,c:1/d"), ["[::1]:6000", "c:1"]);
    }

    #[test]
    fn a_fault_does_not_show_the_password() {
        for url in ["mysql://me:secret@a/b", "postgres://me:secret@a,,b/c", "me:secret@a"] {
            let fault = hosts(url, None).map(drop).unwrap_err();
            assert!(!fault.contains("secret"), "{fault}");
        }
    }
}
