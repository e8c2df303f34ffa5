//! What an error says about the node that a statement ran on.

/// Why a statement failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node is gone, or does not accept writes any more: look where the primary is.
    Lost,
    /// The node is there but cannot do this now.
    Busy,
    /// The statement itself.
    Statement,
}

impl Fault {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Busy => "busy",
            Self::Statement => "statement",
        }
    }
}

pub fn fault(error: &sqlx::Error) -> Fault {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::PoolClosed => Fault::Lost,
        sqlx::Error::PoolTimedOut => Fault::Busy,
        sqlx::Error::Database(error) => {
            error.code().map_or(Fault::Statement, |code| of_code(&code))
        }
        _ => Fault::Statement,
    }
}

/// The fault of a SQLSTATE, see appendix A of the manual.
fn of_code(code: &str) -> Fault {
    match code {
        // Read-only transaction; ended by an administrator, by a crash or as idle; still starting.
        "25006" | "57P01" | "57P02" | "57P03" | "57P05" => Fault::Lost,
        // Serialization failure, deadlock, lock not available, statement timeout; a statement of a
        // replica that stood in the way of replay is one of the first.
        "40001" | "40P01" | "55P03" | "57014" => Fault::Busy,
        _ if code.starts_with("08") => Fault::Lost, // connection exceptions
        _ if code.starts_with("53") => Fault::Busy, // no connections, memory or disk left
        _ => Fault::Statement,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_or_demoted_primary_is_told_from_a_busy_one_and_from_a_wrong_statement() {
        for code in ["25006", "57P01", "57P02", "57P03", "08006", "08001"] {
            assert_eq!(of_code(code), Fault::Lost, "{code}");
        }
        for code in ["53300", "40P01", "57014"] {
            assert_eq!(of_code(code), Fault::Busy, "{code}");
        }
        for code in ["23505", "42601", "22021"] {
            assert_eq!(of_code(code), Fault::Statement, "{code}");
        }
        assert_eq!(fault(&sqlx::Error::PoolTimedOut), Fault::Busy);
        assert_eq!(fault(&sqlx::Error::RowNotFound), Fault::Statement);
        assert_eq!(
            fault(&sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())),
            Fault::Lost
        );
    }
}
