/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Counting a packet against its contract, and its cost against the account that pays for it.
 *
 * A server's packet passes if its contract has bytes left and its account has money left. Each is decided by one
 * compare-and-swap. First the contract is looked at, so that a flood at an exhausted contract touches no account. Then
 * the account pays, then the contract counts. If other processors used the contract up meanwhile, the cost is given
 * back. So for an instant an account may show too little money: a packet too few may pass, never one too many. What a
 * contract has used is what is billed, and it only grows. A client's contract has no account.
 */
#ifndef NGP_CHARGE_H
#define NGP_CHARGE_H

#include "packet.h"

#define SWAPS 64

enum direction { TO, FROM };

/* The coarse clock moves once a tick. Reading it costs calls; reading the count of ticks costs nothing. So the first
 * packet of each tick reads the clock for the others. A packet that reads while another one writes may get the time of
 * the tick before. */
static struct { __u64 tick, now_ns; } last_reading;

INLINE __u64 now_ns(void)
{
	__u64 tick = bpf_jiffies64();

	if (ONCE(last_reading.tick) != tick) {
		ONCE(last_reading.now_ns) = bpf_ktime_get_coarse_ns();
		ONCE(last_reading.tick) = tick;
	}
	return ONCE(last_reading.now_ns);
}

APART int send_hint(enum hint_kind kind, __u32 slot, __u64 tag)
{
	struct hint *hint = bpf_ringbuf_reserve(&ngp_hints, sizeof(*hint), 0);

	if (!hint) {
		count(HINTS_LOST);
		return 0;
	}
	hint->kind = kind;
	hint->slot = slot;
	hint->tag = tag;
	bpf_ringbuf_submit(hint, 0);
	return 0;
}

/* Name the limit that a packet met. The generation is mixed in, because a slot's next owner may stop at the same number. */
INLINE __u64 mark_of(__u64 limit, __u64 tag)
{
	return limit ^ GENERATION(tag) * 0x9e3779b97f4a7c15ull;
}

/* Send one hint for each limit (also for 0) that a packet met. */
APART int meet_limit(__u64 *mark, __u64 limit, enum hint_kind kind, __u32 slot, __u64 tag)
{
	__u64 was = ONCE(*mark), is = mark_of(limit, tag);

	if (was != is && __sync_val_compare_and_swap(mark, was, is) == was)
		send_hint(kind, slot, tag);
	return 0;
}

INLINE int refuse_exhausted(struct contract *contract, __u32 slot, __u64 limit, __u64 tag, enum role role)
{
	if (role == SERVER)
		count(REFUSED_EXHAUSTED);
	return meet_limit(&contract->mark, limit, EXHAUSTED, slot, tag);
}

/* Too many other processors got in between. It is better to drop a packet than to give one away. */
APART int refuse_contended(void)
{
	count(CONTENDED);
	return 0;
}

/* Take a packet's cost from the account in a slot. Returns the account, or 0 if it can't pay. Slot 0 belongs to nobody,
 * and its limit stays 0. The low-water mark is compared with `spent`, which only grows, so its crossing is reported
 * exactly once. `returned` may be read too early, which only makes the room smaller. */
INLINE struct account *take_cost(__u32 slot, __u64 cost, __u64 now)
{
	struct account *account = bpf_map_lookup_elem(&ngp_accounts, &slot);
	__u64 limit, returned, spent, found, low_water;

	if (!account)
		return 0;
	limit = ONCE(account->limit);
	if (now < ONCE(account->credit_until_ns))
		limit += ONCE(account->credit);
	returned = ONCE(account->returned);
	spent = ONCE(account->spent);
	for (int i = 0; i < SWAPS; i++) {
		if ((__s64)(limit + returned - spent - cost) < 0) {
			count(REFUSED_UNPAID);
			meet_limit(&account->mark, limit, ACCOUNT_EXHAUSTED, slot, ONCE(account->tag));
			return 0;
		}
		found = __sync_val_compare_and_swap(&account->spent, spent, spent + cost);
		if (found == spent)
			goto taken;
		spent = found;
	}
	refuse_contended();
	return 0;
taken:
	low_water = ONCE(account->low_water);
	if ((__s64)(low_water - spent) > 0 && (__s64)(low_water - spent - cost) <= 0)
		send_hint(ACCOUNT_LOW, slot, ONCE(account->tag));
	return account;
}

APART int give_back(struct account *account, __u64 cost)
{
	if (account)
		__sync_fetch_and_add(&account->returned, cost);
	return 0;
}

/* Count a packet if contract and account cover it, and return 1; else return 0. The server's meter refuses what isn't
 * counted. The client's meter lets it pass, since the server decides, but counts by the same rule: otherwise the bills of
 * two honest routers would differ by all that was sent against a closed gate. What costs nothing needs no account. */
INLINE int charge(struct contract *contract, __u32 slot, const struct packet *p, enum direction direction, enum role role)
{
	__u64 limit, used, found, low_water, now, cost = 0, bytes = p->bytes, tag = ONCE(contract->tag);
	struct account *account = 0;

	if (tag & BLOCKED) {
		if (role == SERVER)
			count(REFUSED_BLOCKED);
		return 0;
	}
	now = now_ns();
	if (now >= ONCE(contract->expires_ns)) {
		if (role == SERVER)
			count(REFUSED_EXPIRED);
		return 0;
	}
	limit = ONCE(contract->limit);
	used = ONCE(contract->used);
	if (used + bytes > limit)
		return refuse_exhausted(contract, slot, limit, tag, role);
	if (role == SERVER)
		cost = bytes * ONCE(contract->price);
	if (cost) {
		account = take_cost(ACCOUNT(tag), cost, now);
		if (!account)
			return 0;
	}
	for (int i = 0; i < SWAPS; i++) {
		if (used + bytes > limit) {
			give_back(account, cost);
			return refuse_exhausted(contract, slot, limit, tag, role);
		}
		found = __sync_val_compare_and_swap(&contract->used, used, used + bytes);
		if (found == used)
			goto passed;
		used = found;
	}
	give_back(account, cost);
	return refuse_contended();
passed:
	if (direction == TO)
		__sync_fetch_and_add(&contract->used_to, bytes);
	low_water = ONCE(contract->low_water);
	if (used < low_water && used + bytes >= low_water)        /* true for exactly one packet */
		send_hint(LOW, slot, tag);
	return 1;
}

#endif
