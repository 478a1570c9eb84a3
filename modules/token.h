/* SPDX-License-Identifier: GPL-2.0-only
 *
 * A token bucket in one word (generic cell rate algorithm). The word is the time at which the bucket was last empty.
 * Since then one token has come for each `interval_ns`, up to `burst_ns` / `interval_ns` tokens. `take_token` takes
 * one, and returns 0 if there is none.
 *
 * The word 0 is a full bucket. Shortly after a boot, less than `burst_ns` has passed since time 0, so the time at which
 * a full bucket was last empty is before the boot, and wraps around: times are compared by their signed differences.
 */
#ifndef NGP_TOKEN_H
#define NGP_TOKEN_H

#include <linux/types.h>

static __always_inline int take_token(__u64 *ready_ns, __u64 interval_ns, __u64 burst_ns, __u64 now)
{
	for (int i = 0; i < 4; i++) {
		__u64 was = *(volatile __u64 *)ready_ns;
		__u64 from = !was || (__s64)(now - was - burst_ns) > 0 ? now - burst_ns : was;

		if ((__s64)(from + interval_ns - now) > 0)
			return 0;
		from += interval_ns;
		if (__sync_val_compare_and_swap(ready_ns, was, from ? from : 1) == was) /* 0 would be a full bucket */
			return 1;
	}
	return 0;
}

#endif
