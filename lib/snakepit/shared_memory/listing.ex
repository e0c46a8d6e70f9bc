defmodule Snakepit.SharedMemory.Listing do
  @moduledoc false
  # Which regions there are in a place. That of the configuration is kept by the NIF library, fed by
  # inotify: to list it a second time costs a hundredth of the first. Other places are looked at anew.
  #
  # It belongs to no process: it is opened with the application and ends with it, and each list is
  # made in the caller. What it keeps is given back when nobody has listed for a while, and what it keeps
  # of regions that were removed within `tidy/0`'s interval; a call that lacks memory does not wait for that.

  alias Snakepit.SharedMemory.{Config, Native, Target}

  @key :snakepit_shm_listing
  @idle_ms 5_000

  @doc "Opens the listing of the configured place."
  @spec open(Config.t()) :: :ok
  def open(%{namespace: namespace, dir: dir}) do
    # Without it each list looks anew, and says what is wrong.
    with {:ok, listing} <- Native.open_listing(namespace, dir) do
      :persistent_term.put(@key, {namespace, dir, listing})
    end

    :ok
  end

  @doc "Gives it back."
  @spec close() :: :ok
  def close do
    tidy(0)
    :persistent_term.erase(@key)
    :ok
  end

  @doc "What is there now, as the NIF library reports it, and the names of what nobody can attach to."
  @spec list(Target.t()) :: Native.answer({[map()], [String.t()]})
  def list(%{namespace: namespace, dir: dir}) do
    with {^namespace, ^dir, listing} <- :persistent_term.get(@key, nil),
         {:ok, found} <- Native.list_kept(listing) do
      {:ok, found}
    else
      # Not kept; or it could not be, for there are no watches or mappings left to be had.
      _ -> Native.list(namespace, dir)
    end
  end

  @doc "Gives back what nobody needs; called now and then."
  @spec tidy(non_neg_integer()) :: :ok
  def tidy(idle_ms \\ @idle_ms) do
    case :persistent_term.get(@key, nil) do
      nil -> :ok
      {_namespace, _dir, listing} -> Native.tidy_listing(listing, idle_ms)
    end
  end
end
