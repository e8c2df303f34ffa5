//! How members come to the present template and settings, and leave nodes, one step at a time. Pure.

/// A member of the Postgres cluster.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub is_primary: bool,
    pub ready: bool,
    /// Whether its pod is of an older template than the StatefulSet's.
    pub outdated: bool,
    /// Whether it could take over without losing acknowledged writes.
    pub in_sync: bool,
    /// Whether a setting waits for a restart of its Postgres.
    pub pending_restart: bool,
    /// Whether its node takes no more pods, as before it is drained.
    pub leaving: bool,
}

/// What brings members to the present template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutStep {
    Done,
    /// Delete this pod; Kubernetes makes it again.
    Replace(String),
    Switchover {
        from: String,
        to: String,
    },
    /// Restart the Postgres in this pod.
    Restart(String),
    Wait,
}

/// The next step of a rolling update: replicas first, then a planned switchover, the old primary
/// last. Then restarts, where only settings changed, in the same order. One at a time. Before all of
/// that the primary leaves a node that is to be drained.
pub fn rollout_step(members: &[Member], instances: usize) -> RolloutStep {
    if let Some(primary) = members.iter().find(|member| member.is_primary && member.leaving)
        && let Some(step) = switchover(members, primary)
    {
        return step;
    }
    if members.len() < instances {
        // One is being made again. A primary that seems to be alone is not: it must not go now.
        return RolloutStep::Wait;
    }
    let outdated = members.iter().filter(|member| member.outdated);
    let Some(first) = outdated.min_by_key(|member| (member.is_primary, &member.name)) else {
        return restart_step(members);
    };
    if members.iter().any(|member| !member.ready && member.name != first.name) {
        return RolloutStep::Wait;
    }
    if !first.is_primary || instances == 1 {
        return RolloutStep::Replace(first.name.clone());
    }
    switchover(members, first).unwrap_or(RolloutStep::Wait)
}

/// To a member that loses nothing and stays where it is, when there is one.
fn switchover(members: &[Member], primary: &Member) -> Option<RolloutStep> {
    let able =
        |member: &&Member| member.in_sync && member.ready && !member.is_primary && !member.leaving;
    let replica = members.iter().filter(able).min_by_key(|member| &member.name)?;
    Some(RolloutStep::Switchover { from: primary.name.clone(), to: replica.name.clone() })
}

fn restart_step(members: &[Member]) -> RolloutStep {
    let pending = members.iter().filter(|member| member.pending_restart);
    match pending.min_by_key(|member| (member.is_primary, &member.name)) {
        None => RolloutStep::Done,
        Some(_) if members.iter().any(|member| !member.ready) => RolloutStep::Wait,
        Some(first) => RolloutStep::Restart(first.name.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, is_primary: bool) -> Member {
        Member {
            name: name.to_owned(),
            is_primary,
            ready: true,
            outdated: true,
            in_sync: true,
            pending_restart: false,
            leaving: false,
        }
    }

    #[test]
    fn replicas_are_replaced_before_the_primary_is_switched_over_and_replaced() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-1".to_owned()));
        members[1].outdated = false;
        members[1].ready = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Wait);
        members[1].ready = true;
        let (from, to) = ("pg-0".to_owned(), "pg-1".to_owned());
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Switchover { from, to });
        members[0].is_primary = false;
        members[1].is_primary = true;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-0".to_owned()));
        members[0].outdated = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Done);
    }

    #[test]
    fn settings_that_wait_for_a_restart_get_it_one_member_after_the_other() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        for member in &mut members {
            (member.outdated, member.pending_restart) = (false, true);
        }
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Restart("pg-1".to_owned()));
        (members[1].pending_restart, members[1].ready) = (false, false);
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Wait);
        members[1].ready = true;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Restart("pg-0".to_owned()));
    }

    #[test]
    fn a_primary_leaves_a_node_that_is_to_be_drained_for_a_replica_that_stays() {
        let mut members = [member("pg-0", true), member("pg-1", false), member("pg-2", false)];
        for member in &mut members {
            member.outdated = false;
        }
        members[0].leaving = true;
        members[1].leaving = true;
        let (from, to) = ("pg-0".to_owned(), "pg-2".to_owned());
        let switchover = RolloutStep::Switchover { from, to };
        assert_eq!(rollout_step(&members, 3), switchover);
        assert_eq!(rollout_step(&members, 4), switchover, "also while another is made again");
        members[2].in_sync = false;
        assert_eq!(rollout_step(&members, 3), RolloutStep::Done);
    }

    #[test]
    fn a_primary_stays_while_nobody_could_take_over_without_loss() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        members[1].outdated = false;
        members[1].in_sync = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Wait);
    }

    #[test]
    fn a_primary_stays_while_its_replica_is_made_again() {
        let members = [member("pg-0", true)];
        assert_eq!(rollout_step(&members, 2), RolloutStep::Wait);
    }

    #[test]
    fn a_broken_replica_is_replaced_although_it_is_not_ready() {
        let mut members = [member("pg-0", true), member("pg-1", false)];
        members[1].ready = false;
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-1".to_owned()));
    }

    #[test]
    fn a_primary_without_replicas_is_replaced_where_it_is() {
        let members = [member("pg-0", true)];
        assert_eq!(rollout_step(&members, members.len()), RolloutStep::Replace("pg-0".to_owned()));
    }
}
