/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Returns: packets that pass the gate uncharged, because their receiver pays for them at ngp_tc_out.
 *
 * The gate doesn't see to which neighbour a packet goes, and ngp_tc_out doesn't see from which neighbour it came. So
 * the gate stores each return in ngp_returning, which has one entry for each processor: the latest return there. A
 * packet usually reaches ngp_tc_out at once, on the same processor, and finds its entry. But if the MAC of its next
 * hop isn't known, the packet waits, and may leave on another processor. So before the gate overwrites the entry of a
 * packet that hasn't left, it puts the packet into the table ngp_waiting, for as long as the kernel tries to find the
 * MAC; and ngp_tc_out looks at the entries of all processors.
 *
 * If ngp_tc_out took all packets under addresses that we buy for returns, a neighbour that sells to us could send
 * anything for nothing: under a source address that lies in a destination which we buy from it.
 */
#ifndef NGP_RETURNS_H
#define NGP_RETURNS_H

#include "flows.h"

#define WAITING_NS 10000000000ull                             /* a packet waits no longer for its next hop's MAC */
#define PROCESSORS 128                                        /* no router has more; each is some work for the verifier */

/* Not static, so that the verifier checks it once, and not for each processor in was_return_elsewhere. */
__noinline int is_passage(const struct passage *passage, const struct passage *other)
{
	const __u32 *one = (const __u32 *)passage, *two = (const __u32 *)other;

	if (!passage || !other)
		return 0;
	for (int i = 0; i < sizeof(*passage) / 4; i++)
		if (one[i] != two[i])
			return 0;
	return 1;
}

/* Before an entry of ngp_returning is overwritten: if its packet hasn't left yet, remember the packet as waiting. */
INLINE void let_wait(struct returning *now)
{
	__u64 at = bpf_ktime_get_coarse_ns(), *waits;

	if (!now->passage.ifindex || now->left)
		return;
	waits = bpf_map_lookup_elem(&ngp_waiting, &now->passage);
	if (!waits || at - *waits > WAITING_NS / 4)               /* a look-up costs less than an update */
		bpf_map_update_elem(&ngp_waiting, &now->passage, &at, BPF_ANY);
}

/* Store that the packet which passes the gate now is a return, and who sent it. Not static, like the functions below:
 * see `serves`. */
__noinline int note_return(const struct packet *p, __u32 ingress_ifindex, const struct flow *answered)
{
	struct returning *now;
	__u32 zero = 0;

	if (!p || !answered)
		return 1;
	now = bpf_map_lookup_elem(&ngp_returning, &zero);
	if (!now)
		return 1;
	let_wait(now);
	now->passage.ifindex = ingress_ifindex;
	now->passage.flow = *answered;
	now->sender = p->link;
	now->left = 0;
	return 1;
}

/* The gate charged a packet. An entry for the same interface and flow is then about an earlier packet: remove it, so
 * that this packet isn't taken for a return. */
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

/* Find a packet that has waited among the entries of all processors, and mark it as left. */
APART int was_return_elsewhere(const struct passage *passage)
{
	struct returning *at;
	__u32 zero = 0;

	for (__u32 processor = 0; processor < PROCESSORS; processor++) {
		at = bpf_map_lookup_percpu_elem(&ngp_returning, &zero, processor);
		if (!at)
			return 0;
		if (at->passage.ifindex != passage->ifindex || at->left || !is_passage(&at->passage, passage))
			continue;
		at->left = 1;
		return 1;
	}
	return 0;
}

/* Find out, at ngp_tc_out, whether the gate stored this packet as a return. If so, mark that return as left, so that it
 * isn't stored as waiting. */
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
	return (waits && bpf_ktime_get_coarse_ns() - *waits < WAITING_NS) || was_return_elsewhere(&passage);
}

/* Find, at ngp_tc_out, the neighbour's link from which a return came. Returns 0 if it isn't known, as the packet had to
 * wait: then the entry is another packet's. */
APART int find_sender(__u32 ingress_ifindex, const struct packet *p, struct link *sender)
{
	const __u32 *address = remote(p);
	struct returning *now;
	__u32 zero = 0;

	now = bpf_map_lookup_elem(&ngp_returning, &zero);
	if (!now || now->passage.ifindex != ingress_ifindex)
		return 0;
	for (int i = 0; i < 4; i++)
		if (now->passage.flow.to[i] != address[i] || now->passage.flow.from[i] != p->destination[i])
			return 0;
	*sender = now->sender;
	return 1;
}

/* Is a packet a return, or a later fragment of a return? Only the first fragment of a packet has ports, which show its
 * flow. The later fragments follow on the same processor (always, if this host has cut the packet) and are treated
 * like the first: else nobody would pay for the later fragments of a return. `hook` says whether the gate or
 * ngp_tc_out asks: each of them remembers the latest first fragment that it has met. */
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
