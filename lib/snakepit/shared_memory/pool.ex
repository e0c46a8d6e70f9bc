defmodule Snakepit.SharedMemory.Pool do
  @moduledoc """
  Memory of regions that ended, kept for those that come.

  A fresh page of shared memory costs ten times as much as the copy into it: the system zeroes and maps it,
  one fault each. So the file of a region that ends is not removed but kept, pages and all, and the next
  region of about its size is made in it, with another name and identity; a handle to the old one finds
  nothing. Readers of other processes that are still attached keep what they see; the memory waits for them.

  It concerns regions of the configured namespace and directory, created by this VM, with permissions that
  let nobody else read, and not reserved lazily; and results that a worker has handed over, once
  `Snakepit.SharedMemory.deallocate_region/2` has got their handle. Configuration (`Snakepit.SharedMemory.Config`):

    * `:pool_max_bytes` - what is kept at most; 0 switches the pool off
    * `:pool_idle_timeout` - how long memory is kept that no region takes
    * `:pool_zero` - when kept memory is zeroed: between regions of different sessions, always, or never
    * `:allocation_strategy` - which of the files that fit is taken: the one that became idle last
      (`:first_fit`), the shortest (`:best_fit`) or the longest (`:worst_fit`)
    * `:enable_defragmentation` - once a minute, files of regions that are longer than the regions need are
      cut, when that is a quarter of all or more

  What is kept counts towards no limit of regions, and is given back at once when a region finds no space.
  """

  alias Snakepit.SharedMemory.{Config, Error, Native}

  @typedoc """
  What the pool keeps and did: files (`:idle`), of which readers still use some (`:draining`); files that
  were given away with their values and are expected back (`:away`, of workers); regions that
  live in its files (`:live`), the bytes of those, and what the regions need; regions that were created in
  kept memory (`:reused`) and in new (`:fresh`), files that were `:removed`; and the part of its memory that
  no region needs, 0.0 to 1.0.
  """
  @type stats :: %{
          idle: non_neg_integer(),
          idle_bytes: non_neg_integer(),
          draining: non_neg_integer(),
          away: non_neg_integer(),
          live: non_neg_integer(),
          live_bytes: non_neg_integer(),
          needed_bytes: non_neg_integer(),
          reused: non_neg_integer(),
          fresh: non_neg_integer(),
          removed: non_neg_integer(),
          fragmentation: float()
        }

  @doc false
  @spec setup(Config.t()) :: :ok
  def setup(config) do
    limits = %{
      max_idle_bytes: config.pool_max_bytes,
      idle_timeout: config.pool_idle_timeout,
      strategy: config.allocation_strategy,
      zero: config.pool_zero
    }

    {:ok, :ok} = Native.configure_pool(config.namespace, config.dir, limits)
    :ok
  end

  @doc false
  # Whether regions of a place come from the pool.
  @spec serves?(Config.t(), %{namespace: String.t(), dir: String.t()}) :: boolean()
  def serves?(%Config{namespace: namespace, dir: dir} = config, %{namespace: namespace, dir: dir}),
    do: config.pool_max_bytes > 0

  def serves?(_config, _elsewhere), do: false

  @doc false
  @spec stats(atom()) :: {:ok, stats()} | {:error, Error.t()}
  def stats(operation) do
    with {:ok, config} <- Config.fetch(operation) do
      Error.wrap(Native.pool_stats(config.namespace, config.dir), operation, nil)
    end
  end

  @doc false
  @spec defragment(atom()) :: {:ok, non_neg_integer()} | {:error, Error.t()}
  def defragment(operation) do
    with {:ok, config} <- Config.fetch(operation) do
      Error.wrap(Native.defragment_pool(config.namespace, config.dir, true), operation, nil)
    end
  end

  # Less is not worth the page faults that follow.
  @worth 0.25

  @doc false
  # What `:enable_defragmentation` does now and then.
  @spec tidy(Config.t()) :: :ok | {:error, Error.t()}
  def tidy(%Config{enable_defragmentation: false}), do: :ok

  def tidy(config) do
    with {:ok, stats} <-
           Error.wrap(Native.pool_stats(config.namespace, config.dir), :cleanup, nil),
         true <- stats.live_bytes - stats.needed_bytes > stats.live_bytes * @worth,
         {:ok, _bytes} <-
           Error.wrap(Native.defragment_pool(config.namespace, config.dir, false), :cleanup, nil) do
      :ok
    else
      false -> :ok
      {:error, error} -> {:error, error}
    end
  end
end
