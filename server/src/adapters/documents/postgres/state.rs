//! What is known of the nodes, and which of them to use for what.

/// What a node is for, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of those of which one accepts writes.
    Primary,
    /// To be read from.
    Replica,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// What the last probe found.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Not probed since the start, or since a statement failed on it.
    Unknown,
    Down(String),
    /// Accepts writes. The timeline grows with each failover.
    Primary {
        timeline: i64,
    },
    /// Only reads; `current` when it lags behind by no more than is allowed.
    Standby {
        current: bool,
    },
}

impl State {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Down(_) => "down",
            Self::Primary { .. } => "primary",
            Self::Standby { current: true } => "standby",
            Self::Standby { current: false } => "lagging",
        }
    }
}

/// The node to write to. Of two that accept writes the one of the later timeline: the other was
/// replaced and does not know yet.
pub fn primary(nodes: &[(Role, State)]) -> Option<usize> {
    let mut best: Option<(usize, i64)> = None;
    for (index, node) in nodes.iter().enumerate() {
        if let (Role::Primary, State::Primary { timeline }) = node
            && best.is_none_or(|(_, known)| *timeline > known)
        {
            best = Some((index, *timeline));
        }
    }
    best.map(|(index, _)| index)
}

/// The replicas that may be read from.
pub fn readers(nodes: &[(Role, State)]) -> Vec<usize> {
    let timeline = |state: &State| match state {
        State::Primary { timeline } => Some(*timeline),
        _ => None,
    };
    let newest = nodes.iter().filter_map(|(_, state)| timeline(state)).max();
    let usable = |state: &State| match state {
        State::Standby { current } => *current,
        State::Primary { .. } => timeline(state) == newest,
        _ => false,
    };
    let replicas = nodes.iter().enumerate().filter(|(_, node)| node.0 == Role::Replica);
    replicas.filter(|(_, node)| usable(&node.1)).map(|(index, _)| index).collect()
}

/// Whether a probe that is under way may still find the primary.
pub fn may_find_primary(nodes: &[(Role, State)]) -> bool {
    nodes.iter().any(|(role, state)| *role == Role::Primary && *state == State::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOWN: State = State::Down(String::new());

    fn standby(current: bool) -> State {
        State::Standby { current }
    }

    #[test]
    fn of_two_primaries_the_one_of_the_later_timeline_is_written_to() {
        let old = (Role::Primary, State::Primary { timeline: 1 });
        let new = (Role::Primary, State::Primary { timeline: 2 });
        assert_eq!(primary(&[old.clone(), new.clone()]), Some(1));
        assert_eq!(primary(&[new, old]), Some(0));
    }

    #[test]
    fn a_replica_that_was_promoted_is_not_written_to_before_it_is_named_as_a_primary() {
        let promoted = State::Primary { timeline: 2 };
        assert_eq!(primary(&[(Role::Primary, DOWN), (Role::Replica, promoted)]), None);
    }

    #[test]
    fn only_replicas_that_keep_up_are_read_from() {
        let nodes = [
            (Role::Primary, State::Primary { timeline: 1 }),
            (Role::Primary, standby(true)),
            (Role::Replica, standby(true)),
            (Role::Replica, standby(false)),
            (Role::Replica, State::Unknown),
            (Role::Replica, DOWN),
            (Role::Replica, State::Primary { timeline: 1 }),
        ];
        assert_eq!(readers(&nodes), [2, 6]);
    }

    #[test]
    fn an_old_primary_that_came_back_is_not_read_from() {
        let nodes = [
            (Role::Primary, State::Primary { timeline: 2 }),
            (Role::Replica, State::Primary { timeline: 1 }),
        ];
        assert!(readers(&nodes).is_empty());
    }

    #[test]
    fn writers_wait_only_while_a_probe_may_find_the_primary() {
        assert!(may_find_primary(&[(Role::Primary, State::Unknown), (Role::Primary, DOWN)]));
        assert!(!may_find_primary(&[(Role::Replica, State::Unknown), (Role::Primary, DOWN)]));
    }
}
