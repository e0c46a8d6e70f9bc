defmodule Snakepit.SharedMemory.Table.Record do
  @moduledoc false
  # What the registry knows of a region of this node, beside what reads and writes need.

  alias Snakepit.SharedMemory.Target

  @enforce_keys [:target, :size, :bytes, :slots, :owner_pid, :metadata, :state]
  # state: `:ending` is one that is being removed, and that nobody finds any more;
  # token: which allocation it is; owned: whether the owner's reference counts; marked: since when
  # (monotonic milliseconds) nobody refers to it; by_default: its timeout is that of the configuration;
  # adopted: another OS process created it; filled_by: who is to put its first value in, for a region that has none
  # is in use as long as that process lives.
  defstruct @enforce_keys ++
              [
                :token,
                :access_mode,
                :timeout,
                :session,
                :worker,
                :marked,
                :filled_by,
                policy: :automatic,
                by_default: false,
                permissions: 0o600,
                tags: [],
                adopted: false,
                owned: true
              ]

  @type t :: %__MODULE__{
          target: Target.t(),
          size: pos_integer(),
          bytes: pos_integer(),
          slots: pos_integer(),
          owner_pid: pid(),
          metadata: map(),
          state: :live | :ending | {:creating, reference()},
          token: reference() | nil,
          access_mode: :read_only | :read_write | nil,
          timeout: pos_integer() | nil,
          by_default: boolean(),
          session: String.t() | nil,
          worker: String.t() | nil,
          marked: integer() | nil,
          filled_by: pid() | nil,
          policy: :automatic | :manual | :reference_counted,
          permissions: non_neg_integer(),
          tags: [String.t()],
          adopted: boolean(),
          owned: boolean()
        }
end
