/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Programs by which tests call ngp's own code for charging (charge.h) without real packets: a test chooses the
 * contract's slot and the number of bytes. A test can also cause what otherwise happens once in a million packets:
 * other packets use the contract after it was looked at and before the account pays, or a word changes after it was
 * read and before it is swapped.
 *
 * `ask` charges one packet. `storm` charges packets of random sizes to random contracts, and keeps its own count of
 * what passed. `slow` runs for 0.2 s: with it a test checks that ngp waits until a running program has ended.
 */
#include "meter.h"

struct request {
	__u64 bytes, others_bytes;
	__u32 slot, role;
};

static __always_inline __u32 after_others(struct contract *contract, __u64 bytes, __u32 slot)
{
	if (bytes)
		__sync_fetch_and_add(&contract->used, bytes);
	return slot;
}

#undef ACCOUNT
#define ACCOUNT(tag) after_others(contract, p->others_bytes, (__u32)((tag) >> 32))

TABLE(lab_meddling, ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);

static __always_inline void meddle(__u64 *word)
{
	__u32 zero = 0;
	__u64 *units = bpf_map_lookup_elem(&lab_meddling, &zero), by;

	if (units && *units) {
		by = *units;
		*units = 0;
		__sync_fetch_and_add(word, by);
	}
}

#define __sync_val_compare_and_swap(word, old, new) (meddle(word), __sync_val_compare_and_swap(word, old, new))
#define NGP_PACKET_H                                          /* charge.h gets the packet below instead */
#include <linux/if_ether.h>
struct packet { __u64 bytes, others_bytes; __u32 destination[4]; };
static __always_inline const __u32 *remote(const struct packet *p) { return p->destination; }
#include "charge.h"

TABLE(lab_passed, ARRAY, __u32, __u64, 64, BPF_F_MMAPABLE);
TABLE(lab_progress, ARRAY, __u32, __u64, 1, BPF_F_MMAPABLE);

SEC("tc")
int ask(struct __sk_buff *skb)
{
	struct request request = {};
	struct packet p = {};
	struct contract *contract;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &request, sizeof(request)))
		return -1;
	p.bytes = request.bytes;
	p.others_bytes = request.others_bytes;
	contract = bpf_map_lookup_elem(&ngp_contracts, &request.slot);
	if (!contract)
		return -1;
	if (request.role == CLIENT)
		return charge(contract, request.slot, &p, FROM, CLIENT);
	return charge(contract, request.slot, &p, TO, SERVER);
}

/* The request's `bytes` and `slot` are masks: they bound the random sizes, and the slots of the random contracts. */
SEC("tc")
int storm(struct __sk_buff *skb)
{
	__u32 random = bpf_get_prandom_u32(), slot;
	struct request request = {};
	struct contract *contract;
	struct packet p = {};
	__u64 *passed;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &request, sizeof(request)))
		return -1;
	slot = random & request.slot;
	p.bytes = 1 + (random >> 8 & request.bytes);
	contract = bpf_map_lookup_elem(&ngp_contracts, &slot);
	passed = bpf_map_lookup_elem(&lab_passed, &slot);
	if (!contract || !passed || !charge(contract, slot, &p, TO, SERVER))
		return 0;
	__sync_fetch_and_add(passed, p.bytes);
	return 1;
}

static long step(__u32 index, void *context)
{
	return bpf_ktime_get_ns() >= *(__u64 *)context;
}

SEC("tc")
int slow(struct __sk_buff *skb)
{
	__u64 until = bpf_ktime_get_ns() + 200000000, *progress;
	__u32 zero = 0;

	progress = bpf_map_lookup_elem(&lab_progress, &zero);
	if (!progress)
		return 0;
	ONCE(*progress) = 1;
	bpf_loop(1 << 23, step, &until, 0);
	ONCE(*progress) = 2;
	return 1;
}

char _license[] SEC("license") = "GPL";
