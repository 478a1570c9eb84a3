/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Returns: packets that the gate lets pass uncharged, because whoever gets them pays for them where they leave.
 *
 * The gate doesn't see to whom a packet goes, and at the interface its sender can't be seen any more. So the gate leaves a
 * note on its processor. The packet reaches ngp_tc_out at once and on the same processor; only where its next hop must
 * first be resolved it waits, and may leave on another one: such passages are remembered for as long as the kernel tries.
 * Without the note a neighbour that sells to us could send for nothing, under a source that we buy there.
 */
#ifndef NGP_RETURNS_H
#define NGP_RETURNS_H

#include "flows.h"

#define WAITING_NS 10000000000ull                             /* longer than the kernel tries to resolve a next hop */

APART int is_passage(const struct passage *passage, const struct passage *other)
{
	const __u32 *one = (const __u32 *)passage, *two = (const __u32 *)other;

	for (int i = 0; i < sizeof(*passage) / 4; i++)
		if (one[i] != two[i])
			return 0;
	return 1;
}

/* The packet that the processor's note is about has not left at once. */
INLINE void let_wait(struct returning *now)
{
	__u64 at = bpf_ktime_get_coarse_ns(), *waits;

	if (!now->passage.ifindex || now->left)
		return;
	waits = bpf_map_lookup_elem(&ngp_waiting, &now->passage);
	if (!waits || at - *waits > WAITING_NS / 4)               /* to look costs less */
		bpf_map_update_elem(&ngp_waiting, &now->passage, &at, BPF_ANY);
}

/* Not static, as matches_free; neither are the next ones. */
__noinline int note_return(__u32 ingress_ifindex, const struct flow *answered)
{
	struct returning *now;
	__u32 zero = 0;

	if (!answered)
		return 1;
	now = bpf_map_lookup_elem(&ngp_returning, &zero);
	if (!now)
		return 1;
	let_wait(now);
	now->passage.ifindex = ingress_ifindex;
	now->passage.flow = *answered;
	now->left = 0;
	return 1;
}

/* The gate charged a packet: an older note on its like is about another one. */
__noinline int note_paid(__u32 ingress_ifindex, const struct flow *answered)
{
	struct passage passage = { .ifindex = ingress_ifindex };
	struct returning *now;
	__u32 zero = 0;

	if (!answered)
		return 1;
	passage.flow = *answered;
	now = bpf_map_lookup_elem(&ngp_returning, &zero);
	if (now && is_passage(&now->passage, &passage)) {
		let_wait(now);
		now->passage.ifindex = 0;
	}
	return 1;
}

/* A packet came to its interface: is it a return? */
__noinline int was_return(__u32 ingress_ifindex, const struct flow *answered)
{
	struct passage passage = { .ifindex = ingress_ifindex };
	struct returning *now;
	__u32 zero = 0;
	__u64 *waits;

	if (!answered)
		return 0;
	passage.flow = *answered;
	now = bpf_map_lookup_elem(&ngp_returning, &zero);
	if (now && is_passage(&now->passage, &passage)) {
		now->left = 1;
		return 1;
	}
	waits = bpf_map_lookup_elem(&ngp_waiting, &passage);
	return waits && bpf_ktime_get_coarse_ns() - *waits < WAITING_NS;
}

/* Of a packet's fragments only the first one has ports. The others follow it on the same processor, always where this
 * host has cut it, and are what it is: else they would leave unpaid behind a return. Each hook keeps a leader of its own. */
APART int is_led_return(const struct packet *p, __u32 ifindex, __u32 hook, int is_return)
{
	struct leader *leader;

	if (p->protocol != LATER_FRAGMENT && !p->goes_on)
		return is_return;
	leader = bpf_map_lookup_elem(&ngp_leaders, &hook);
	if (!leader)
		return is_return;
	if (p->goes_on) {
		leader->ifindex = ifindex;
		__builtin_memcpy(leader->source, p->source, 16);
		__builtin_memcpy(leader->destination, p->destination, 16);
		leader->number = p->number;
		leader->is_return = is_return;
		return is_return;
	}
	if (is_return || !leader->is_return || leader->ifindex != ifindex || leader->number != p->number)
		return is_return;
	for (int i = 0; i < 4; i++)
		if (leader->source[i] != p->source[i] || leader->destination[i] != p->destination[i])
			return 0;
	return 1;
}

#endif
