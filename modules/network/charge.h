/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Counting a packet against its contract, and its cost against the account that pays for it.
 *
 * Where we sell (role SERVER), a packet passes if its contract has bytes left and its account has money left.
 * There are three steps:
 *
 *   1. Look whether the contract has bytes left, so that a flood at an exhausted contract touches no account.
 *   2. Take the cost from the account, by compare-and-swap.
 *   3. Count the bytes at the contract, by compare-and-swap. If other processors have used the contract up meanwhile,
 *      give the cost back to the account.
 *
 * So an account may show too little money for an instant. Then a packet too many is refused, but never one too many
 * passes. A contract's used bytes, which are billed, only grow. Where we buy (role CLIENT), a contract has no account.
 */
#ifndef NGP_CHARGE_H
#define NGP_CHARGE_H

#include "packet.h"

#define SWAPS 64

enum direction { TO, FROM };

/* The coarse clock changes once a tick of the kernel's timer. Reading the clock costs a call; reading the tick's number
 * costs nothing. So the first packet in each tick reads the clock and stores the time for the packets after it. A
 * packet that reads the stored time while another packet stores it may get the time of the tick before. */
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

/* Return a number for the limit that a packet met. The slot's generation is a part of the number: the slot's next owner
 * may have the same limit, and its first packet there must send a hint again. */
INLINE __u64 mark_of(__u64 limit, __u64 tag)
{
	return limit ^ GENERATION(tag) * 0x9e3779b97f4a7c15ull;
}

/* Send a hint about the limit (which may be 0) that a packet met, unless a packet met the same limit before. */
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

/* At each of our attempts to change a word, another processor changed it first. Drop the packet: if it passed, it would
 * be carried unpaid. */
APART int refuse_contended(void)
{
	count(CONTENDED);
	return 0;
}

INLINE __u64 limit_with_credit(const struct account *account, __u64 now)
{
	return ONCE(account->limit) + (now < ONCE(account->credit_until_ns) ? ONCE(account->credit) : 0);
}

/* Take a packet's cost from the account in a slot. Returns the account, or 0 if it can't pay. Slot 0 belongs to
 * nobody, and its limit stays 0. The low-water mark is compared with `spent`, which only grows, so exactly one packet
 * crosses the mark and reports that. Another processor may raise `returned` after we have read it; then the account has
 * more money than we see, never less. */
INLINE struct account *take_cost(__u32 slot, __u64 cost, __u64 now)
{
	struct account *account = bpf_map_lookup_elem(&ngp_accounts, &slot);
	__u64 limit, returned, spent, found, low_water;

	if (!account)
		return 0;
	limit = limit_with_credit(account, now);
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

/* Count a packet of a contract for several addresses under the address at the far end, so that the operator sees which
 * of them were used most. Nothing is charged by these counts: the table forgets addresses that weren't used for long,
 * and when two processors enter an address at once, one of the two packets isn't counted. Not static: see `serves`. */
__noinline int note_host(const struct packet *p, __u32 slot, __u64 tag, int direction)
{
	struct host_bytes *bytes, fresh = {};
	struct inside key = { .slot = slot, .generation = GENERATION(tag) };

	if (!p)
		return 0;
	__builtin_memcpy(key.address, direction == TO ? p->destination : remote(p), 16);
	bytes = bpf_map_lookup_elem(&ngp_inside, &key);
	if (bytes) {
		__sync_fetch_and_add(direction == TO ? &bytes->to : &bytes->from, p->bytes);
		return 0;
	}
	if (direction == TO)
		fresh.to = p->bytes;
	else
		fresh.from = p->bytes;
	bpf_map_update_elem(&ngp_inside, &key, &fresh, BPF_NOEXIST);
	return 0;
}

/* Count a packet and return 1 if its contract and its account cover it; else return 0 and count nothing. The server's
 * meter refuses a packet that isn't counted. The client's meter lets the packet pass, since the server decides. But the
 * client must not count it either: the server refuses and doesn't bill such packets, so the sums of two honest routers
 * would differ by all refused packets. Traffic at price 0 needs no account. */
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
	if (tag & WIDE)
		note_host(p, slot, tag, direction);
	low_water = ONCE(contract->low_water);
	if (used < low_water && used + bytes >= low_water)        /* true for exactly one packet */
		send_hint(LOW, slot, tag);
	return 1;
}

/* Would a contract's server charge a packet to it now? Takes nothing. */
APART int could_pay(struct contract *contract, const struct packet *p)
{
	__u64 tag = ONCE(contract->tag), cost = p->bytes * ONCE(contract->price), now = now_ns();
	__u32 slot = ACCOUNT(tag);
	struct account *account;

	if ((tag & BLOCKED) || now >= ONCE(contract->expires_ns) || ONCE(contract->used) + p->bytes > ONCE(contract->limit))
		return 0;
	if (!cost)
		return 1;
	account = bpf_map_lookup_elem(&ngp_accounts, &slot);
	return account && (__s64)(limit_with_credit(account, now) + ONCE(account->returned) - ONCE(account->spent) - cost) >= 0;
}

#endif
