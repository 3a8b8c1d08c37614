"""Policy: every mode has its reason, require never falls back, and scarcity stretches epochs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qproxy.errors import Reason
from qproxy.modes import Mode, Policy, stricter
from qproxy.quantum.health import LinkState
from qproxy.quantum.policy import PEER_HAS_NO_KEYS, Action, ModePolicy, Situation

HEALTHY, DEGRADED, DOWN = LinkState.HEALTHY, LinkState.DEGRADED, LinkState.DOWN
HYBRID, CLASSICAL = Mode.HYBRID, Mode.CLASSICAL_ONLY
OFF, PREFER, REQUIRE = Policy.OFF, Policy.PREFER, Policy.REQUIRE

FINE = Situation(link=HEALTHY, link_reason=Reason.LINK_HEALTHY, keys_available=10)
REFUSED = replace(FINE, link=DOWN, link_reason=Reason.KME_UNREACHABLE)
#: A live tunnel in a hybrid epoch.
LIVE = replace(FINE, current_mode=HYBRID, epoch_age_s=60.0, qkd_age_s=60.0)


def decide(policy: Policy, situation: Situation, **more: object):
    decision = ModePolicy(policy=policy, **more).decide(situation)
    return decision.action, decision.mode, decision.reason


# --- which mode ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PREFER, REQUIRE])
@pytest.mark.parametrize(
    ("link", "reason"), [(HEALTHY, Reason.LINK_HEALTHY), (DEGRADED, Reason.LINK_DEGRADED)]
)
def test_hybrid_is_offered_while_keys_can_be_had(policy, link, reason):
    situation = replace(FINE, link=link, link_reason=Reason.KEYS_EXHAUSTED)
    assert decide(policy, situation) == (Action.OFFER, HYBRID, reason)


def test_off_asks_for_no_key():
    assert decide(OFF, FINE) == (Action.OFFER, CLASSICAL, Reason.POLICY_OFF)


@pytest.mark.parametrize("peer", [PREFER, REQUIRE])
def test_off_goes_along_with_a_stricter_peer(peer):
    assert decide(OFF, replace(FINE, peer_policy=peer))[:2] == (Action.OFFER, HYBRID)


@pytest.mark.parametrize("own", list(Policy))
@pytest.mark.parametrize("peer", [None, *Policy])
def test_the_stricter_policy_holds(own, peer):
    decision = ModePolicy(policy=own).decide(replace(FINE, peer_policy=peer))
    assert decision.policy is (own if peer is None else stricter(own, peer))


def test_prefer_falls_back_at_once_when_the_link_is_down_and_climbs_back():
    policy = ModePolicy(policy=PREFER)
    down = policy.decide(replace(REFUSED, current_mode=HYBRID))
    assert (down.action, down.mode) == (Action.OFFER, CLASSICAL)
    assert down.reason is down.obstacle is Reason.KME_UNREACHABLE
    up = policy.decide(replace(FINE, current_mode=CLASSICAL))
    assert (up.action, up.mode, up.obstacle) == (Action.OFFER, HYBRID, None)


def test_prefer_without_a_key_source_says_so():
    assert decide(PREFER, FINE, has_key_source=False) == (
        Action.OFFER,
        CLASSICAL,
        Reason.NO_KEY_SOURCE,
    )


def test_a_new_tunnel_without_keys_falls_back_under_prefer():
    assert decide(PREFER, replace(FINE, keys_available=0)) == (
        Action.OFFER,
        CLASSICAL,
        Reason.KEYS_EXHAUSTED,
    )


def test_keys_for_half_an_epoch_are_not_enough():
    assert decide(PREFER, replace(FINE, keys_available=1), keys_per_epoch=2)[1] is CLASSICAL


def test_a_trial_is_hybrid_although_the_link_is_down():
    situation = replace(FINE, link=DOWN, link_reason=Reason.KEY_MISMATCH, awaits_trial=True)
    assert decide(PREFER, situation)[1] is CLASSICAL
    assert decide(PREFER, replace(situation, trial=True)) == (
        Action.OFFER,
        HYBRID,
        Reason.KEY_MISMATCH,
    )


@pytest.mark.parametrize("rejected", sorted(PEER_HAS_NO_KEYS))
def test_a_peer_without_keys_makes_prefer_fall_back_and_require_wait(rejected):
    situation = replace(FINE, rejected=rejected)
    assert decide(PREFER, situation) == (Action.OFFER, CLASSICAL, rejected)
    assert decide(REQUIRE, replace(LIVE, rejected=rejected)) == (Action.WAIT, None, rejected)


@pytest.mark.parametrize(
    "rejected", [Reason.KEY_NOT_FOUND, Reason.KEY_SPENT, Reason.KEY_MISMATCH, Reason.KEY_INVALID]
)
@pytest.mark.parametrize("policy", [PREFER, REQUIRE])
def test_another_key_is_tried_when_one_was_rejected(policy, rejected):
    assert decide(policy, replace(FINE, rejected=rejected))[1] is HYBRID


def test_a_peer_that_requires_turns_a_rejected_classical_offer_into_a_hybrid_one():
    situation = replace(FINE, peer_policy=REQUIRE, rejected=Reason.POLICY_REQUIRE)
    assert decide(OFF, situation)[1] is HYBRID


@pytest.mark.parametrize("reason", sorted(set(Reason) - PEER_HAS_NO_KEYS))
@pytest.mark.parametrize("situation", [FINE, LIVE, REFUSED], ids=["fine", "live", "refused"])
@pytest.mark.parametrize("policy", list(Policy))
def test_nothing_that_the_path_can_cause_changes_the_mode(policy, situation, reason):
    assert decide(policy, replace(situation, rejected=reason)) == decide(policy, situation)


# --- require ---------------------------------------------------------------------------------


def test_require_refuses_a_new_tunnel_without_keys():
    assert decide(REQUIRE, replace(FINE, keys_available=0)) == (
        Action.REFUSE,
        None,
        Reason.POLICY_REQUIRE,
    )


def test_require_lets_a_live_tunnel_wait_until_its_time_is_up():
    gone = replace(LIVE, link=DOWN, link_reason=Reason.KME_TIMEOUT, keys_available=0)
    assert decide(REQUIRE, replace(gone, qkd_age_s=300.0)) == (
        Action.WAIT,
        None,
        Reason.KME_TIMEOUT,
    )
    late = ModePolicy(policy=REQUIRE).decide(replace(gone, qkd_age_s=300.1))
    assert (late.action, late.mode, late.reason) == (Action.REFUSE, None, Reason.QKD_TOO_OLD)
    assert late.obstacle is Reason.KME_TIMEOUT


def test_require_lives_on_stocked_keys_while_its_kme_is_gone():
    assert decide(REQUIRE, REFUSED) == (Action.OFFER, HYBRID, Reason.KME_UNREACHABLE)


@pytest.mark.parametrize(
    "more",
    [
        {"link_reason": Reason.QBER_HIGH},
        {"link_reason": Reason.KEY_MISMATCH, "awaits_trial": True},
        {"link_reason": Reason.KME_UNREACHABLE, "awaits_trial": True},
        {"keys_available": 0},
    ],
)
def test_require_does_not_spend_stocked_keys_that_cannot_help(more):
    assert decide(REQUIRE, replace(REFUSED, qkd_age_s=1.0, **more))[0] is Action.WAIT


def test_a_tunnel_is_overdue_only_under_require():
    for own, peer in [(PREFER, None), (PREFER, OFF), (OFF, PREFER)]:
        assert ModePolicy(policy=own).overdue(peer, None) is None
    for own, peer in [(REQUIRE, None), (REQUIRE, OFF), (OFF, REQUIRE)]:
        policy = ModePolicy(policy=own, max_without_qkd_s=10)
        assert policy.overdue(peer, None) is Reason.POLICY_REQUIRE
        assert policy.overdue(peer, 10.0) is None
        assert policy.overdue(peer, 10.1) is Reason.QKD_TOO_OLD
        assert policy.overdue(peer, math.nan) is Reason.QKD_TOO_OLD


situations = st.builds(
    Situation,
    link=st.sampled_from(LinkState),
    link_reason=st.sampled_from(Reason),
    keys_available=st.integers(0, 20),
    peer_policy=st.none() | st.sampled_from(Policy),
    current_mode=st.none() | st.sampled_from(Mode),
    epoch_age_s=st.floats(0, 10_000),
    qkd_age_s=st.none() | st.floats(0, 10_000),
    rejected=st.none() | st.sampled_from(Reason),
    awaits_trial=st.booleans(),
    trial=st.booleans(),
    must_rekey=st.booleans(),
    tunnels=st.integers(1, 64),
    supply_keys_per_s=st.none() | st.floats(0, 1000),
    stock_low=st.booleans(),
)
policies = st.builds(
    ModePolicy,
    policy=st.sampled_from(Policy),
    max_without_qkd_s=st.floats(1, 1000),
    rekey_interval_s=st.floats(1, 100),
    max_interval_s=st.floats(100, 1000),
    keys_per_epoch=st.integers(1, 4),
    has_key_source=st.booleans(),
)


@settings(deadline=None)
@given(policies, situations)
def test_require_never_yields_classical_only(policy, situation):
    decision = policy.decide(situation)
    if decision.policy is REQUIRE:
        assert decision.mode is not CLASSICAL
    else:
        assert decision.action is not Action.REFUSE


@settings(deadline=None)
@given(policies, situations)
def test_every_decision_is_whole(policy, situation):
    decision = policy.decide(situation)
    assert (decision.mode is not None) == (decision.action is Action.OFFER)
    longest = policy.max_interval_s
    if decision.policy is REQUIRE:
        longest = min(longest, policy.max_without_qkd_s / 2)
    assert 0 < decision.rekey_interval_s <= longest
    assert decision.economy == (decision.rekey_interval_s > min(policy.rekey_interval_s, longest))
    if decision.mode is HYBRID:
        assert policy.has_key_source
        assert situation.keys_available >= policy.keys_per_epoch
        assert decision.obstacle is None
    elif decision.policy is not OFF:
        assert decision.obstacle is not None


@settings(deadline=None)
@given(policies, situations)
def test_both_ends_agree_on_what_is_forbidden(policy, situation):
    """What one end may offer under the policy that holds, the other end answers."""
    decision = policy.decide(situation)
    if decision.mode is None or situation.peer_policy is None:
        return
    server = ModePolicy(policy=situation.peer_policy)
    assert server.answer(decision.mode, policy.policy, HEALTHY, Reason.LINK_HEALTHY) is None


# --- the server's side -----------------------------------------------------------------------


@pytest.mark.parametrize(("own", "peer"), [(REQUIRE, OFF), (OFF, REQUIRE), (REQUIRE, REQUIRE)])
def test_a_classical_offer_is_rejected_where_either_end_requires(own, peer):
    answer = ModePolicy(policy=own).answer(CLASSICAL, peer, HEALTHY, Reason.LINK_HEALTHY)
    assert answer is Reason.POLICY_REQUIRE


@pytest.mark.parametrize("own", [OFF, PREFER])
@pytest.mark.parametrize("link", list(LinkState))
def test_a_classical_offer_is_answered_where_nobody_requires(own, link):
    assert ModePolicy(policy=own).answer(CLASSICAL, PREFER, link, Reason.LINK_DOWN) is None


def test_a_hybrid_offer_needs_a_key_source_and_a_link_without_eavesdropper():
    policy = ModePolicy(policy=PREFER)
    assert policy.answer(HYBRID, PREFER, DOWN, Reason.KME_TIMEOUT) is None
    assert policy.answer(HYBRID, PREFER, DOWN, Reason.QBER_HIGH) is Reason.QBER_HIGH
    without = replace(policy, has_key_source=False)
    assert without.answer(HYBRID, PREFER, HEALTHY, Reason.LINK_HEALTHY) is Reason.NO_KEY_SOURCE


# --- key economy -----------------------------------------------------------------------------


def test_short_keys_lengthen_the_epoch_before_they_end_it():
    policy = ModePolicy(policy=PREFER)
    short = replace(LIVE, link=DEGRADED, link_reason=Reason.KEYS_EXHAUSTED, keys_available=0)
    short = replace(short, stock_low=True)
    waiting = policy.decide(short)
    assert (waiting.action, waiting.reason) == (Action.WAIT, Reason.KEYS_EXHAUSTED)
    assert (waiting.rekey_interval_s, waiting.economy) == (600.0, True)
    assert policy.decide(replace(short, epoch_age_s=599.9)).action is Action.WAIT
    over = policy.decide(replace(short, epoch_age_s=600.0))
    assert (over.action, over.mode, over.reason) == (
        Action.OFFER,
        CLASSICAL,
        Reason.KEYS_EXHAUSTED,
    )


@pytest.mark.parametrize(
    "more",
    [
        {"must_rekey": True},
        {"current_mode": CLASSICAL},
        {"current_mode": None},
        {"link": DOWN, "link_reason": Reason.KME_TIMEOUT},
    ],
)
def test_an_epoch_is_not_stretched_where_that_would_not_do(more):
    short = replace(LIVE, keys_available=0, **more)
    assert decide(PREFER, short)[:2] == (Action.OFFER, CLASSICAL)


def test_plenty_of_keys_means_the_configured_interval():
    decision = ModePolicy(policy=PREFER).decide(FINE)
    assert (decision.rekey_interval_s, decision.economy) == (60.0, False)


def test_the_interval_is_what_the_link_carries():
    policy = ModePolicy(policy=PREFER, rekey_interval_s=1.0)
    situation = replace(FINE, tunnels=4, supply_keys_per_s=0.04, keys_available=6)
    decision = policy.decide(situation)
    assert decision.rekey_interval_s == pytest.approx(4 / (0.04 + 6 / 600))
    assert decision.economy
    enough = policy.decide(replace(situation, supply_keys_per_s=4.0))
    assert (enough.rekey_interval_s, enough.economy) == (1.0, False)


def test_an_empty_stock_and_no_supply_mean_the_longest_interval():
    policy = ModePolicy(policy=REQUIRE, max_without_qkd_s=300)
    situation = replace(LIVE, keys_available=0, supply_keys_per_s=0.0)
    assert policy.interval_s(situation) == 150.0


@settings(deadline=None)
@given(policies, situations, st.integers(0, 20))
def test_more_keys_never_lengthen_the_interval(policy, situation, more):
    richer = replace(situation, keys_available=situation.keys_available + more)
    assert policy.interval_s(richer) <= policy.interval_s(situation)


@pytest.mark.parametrize(
    ("mode", "awaits_trial", "keys", "climbs"),
    [
        (Mode.CLASSICAL_ONLY, False, 3, False),
        (Mode.CLASSICAL_ONLY, False, 4, True),
        (Mode.CLASSICAL_ONLY, True, 2, True),
        (Mode.HYBRID, False, 2, True),
        (None, False, 2, True),
    ],
)
def test_climbing_back_asks_for_the_keys_of_two_epochs(mode, awaits_trial, keys, climbs):
    decision = ModePolicy(policy=Policy.PREFER, keys_per_epoch=2).decide(
        Situation(
            link=LinkState.DEGRADED,
            link_reason=Reason.KEYS_EXHAUSTED,
            keys_available=keys,
            current_mode=mode,
            awaits_trial=awaits_trial,
        )
    )
    assert (decision.mode is Mode.HYBRID) == climbs
