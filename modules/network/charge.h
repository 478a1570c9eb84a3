/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Counting a packet against its contract: one compare-and-swap, for the server's meter and the client's alike.
 */
#ifndef NGP_CHARGE_H
#define NGP_CHARGE_H

#include "packet.h"

#define SWAPS 64

enum direction { TO, FROM };

/* The coarse clock moves once a tick. Reading it costs calls, reading the count of ticks costs nothing: so the first
 * packet of each tick reads it for the others. Who reads while another writes may get the tick before. */
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

APART int tell(enum hint_kind kind, __u32 slot, __u64 tag)
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

/* Stop at the limit, and say so once for each value granted (also for 0). The mark holds the generation, because a
 * slot's next contract may stop at the very same count. */
APART int stop_depleted(struct contract *contract, __u32 slot, __u32 bytes, __u64 granted)
{
	__u64 tag = ONCE(contract->tag), was = ONCE(contract->depleted);
	__u64 mark = (__u64)GENERATION(tag) << 48 | ((granted + 1) & 0xffffffffffff);

	__sync_fetch_and_add(&contract->refused, bytes);
	if (was != mark && __sync_val_compare_and_swap(&contract->depleted, was, mark) == was)
		tell(DEPLETED, slot, tag);
	return 0;
}

APART int stop_bought(struct contract *contract, __u32 bytes)
{
	__sync_fetch_and_add(&contract->refused, bytes);
	return 0;
}

/* Count a packet while its contract covers it, and return 1; else 0. The server's meter refuses what isn't counted. The
 * client's lets it pass, as the server decides, but counts by this same rule: else the bills of two honest routers would
 * differ by all that was sent against a closed gate. */
INLINE int charge(struct contract *contract, __u32 slot, const struct packet *p, enum direction direction, enum role role)
{
	__u64 granted, used, found, low_water, bytes = p->bytes;

	if (ONCE(contract->tag) & BLOCKED) {
		if (role == CLIENT)
			return stop_bought(contract, bytes);
		count(REFUSED_BLOCKED);
		return 0;
	}
	if (now_ns() >= ONCE(contract->expires_ns)) {
		if (role == CLIENT)
			return stop_bought(contract, bytes);
		count(REFUSED_EXPIRED);
		return 0;
	}
	granted = ONCE(contract->granted);
	used = ONCE(contract->used);
	for (int i = 0; i < SWAPS; i++) {
		if (used + bytes > granted) {
			if (role == SERVER)
				count(REFUSED_DEPLETED);
			return stop_depleted(contract, slot, bytes, granted);
		}
		found = __sync_val_compare_and_swap(&contract->used, used, used + bytes);
		if (found == used)
			goto passed;
		used = found;
	}
	count(CONTENDED);                                         /* so many others in between: rather lose one than give one */
	return 0;
passed:
	if (direction == TO)
		__sync_fetch_and_add(&contract->used_to, bytes);
	low_water = ONCE(contract->low_water);
	if (used < low_water && used + bytes >= low_water)        /* true for exactly one packet */
		tell(LOW, slot, ONCE(contract->tag));
	return 1;
}

#endif
